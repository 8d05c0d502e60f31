"""The HTTP interface, tested on a running server."""

import base64
import gzip
import io
import json
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, chdir, suppress
from pathlib import Path
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest
from PIL import Image

from bintally.bins.products import listed_products, product_arrays
from bintally.inference.predictor import Predictor
from bintally.scoring.calibration import Floats, predict_counts
from bintally.scoring.judgement import judge
from bintally.scoring.lists import Lists
from bintally.scoring.record_errors import error_probability
from bintally.serving.answers import read_records
from bintally.serving.bodies import MAX_IMAGES, MAX_PRODUCTS
from bintally.serving.protocol import MAX_CHUNKS, MAX_CONNECTIONS, MAX_HEADERS, MAX_PIPELINED, MAX_URL
from server_process import JPEG, ServerProcess, bin_images, running_server
from small import CALIBRATION, CARD, counting_network
from small_records import copy_model_with_records, older_record_model, record, record_model, record_text, saw


@pytest.fixture(scope="module")
def server(exported_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_server(copy_model_with_records(exported_model, tmp_path_factory.mktemp("model"))) as running:
        yield running


@pytest.fixture(scope="module")
def probabilities(exported_model: Path) -> Floats:
    """Of the images, one after the other, by a Predictor in this process."""
    with chdir(exported_model):
        return Predictor(counting_network(), CARD, CALIBRATION)(bin_images())


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def encoded(*images: bytes, **more: object) -> dict[str, Any]:
    return {"images": [{"data": base64.b64encode(image).decode(), **more} for image in images]}


def as_browsers_and_tools_write_it(image: bytes) -> bytes:
    """JSON with a byte order mark, of an image in Base64 in four ways."""
    ways = [
        base64.encodebytes(image),
        base64.encodebytes(image).replace(b"\n", b"\r\n"),
        base64.urlsafe_b64encode(image).rstrip(b"="),
        b"data:image/jpeg;base64," + base64.b64encode(image),
    ]
    return b"\xef\xbb\xbf" + json.dumps({"images": [{"data": data.decode()} for data in ways]}).encode()


def form(*images: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", ("bin.jpg", image, "image/jpeg")) for image in images]


def test_every_kind_of_body_gets_the_predictors_probabilities(client: httpx.Client, probabilities: Floats) -> None:
    expected = predict_counts(probabilities, CALIBRATION)
    with ThreadPoolExecutor(8) as pool:
        raw = list(pool.map(lambda body: client.post("/invocations", content=body, headers=JPEG), bin_images()))
    several = [
        client.post("/invocations", json=encoded(*bin_images())),
        client.post("/invocations", files=form(*bin_images())),
    ]
    written = client.post("/invocations", content=as_browsers_and_tools_write_it(bin_images()[0]), headers=AS_JSON)
    assert [one["probabilities"] for one in written.json()["predictions"]] == [
        pytest.approx(probabilities[0].tolist(), abs=1e-4)
    ] * 4
    assert {one.headers["x-model"] for one in [*raw, *several]} == {client.get("/model").json()["model"]}
    assert CARD.model_dump(mode="json") == client.get("/model").json()["card"]
    for found in [[one.json() for one in raw], *(one.json()["predictions"] for one in several)]:
        np.testing.assert_allclose([one["probabilities"] for one in found], probabilities, atol=1e-4)
        for row, one in enumerate(found):
            assert set(one) == {
                *("counts", "probabilities", "most_probable", "rounded_mean", "median", "set", "coverage", "unsure")
            }
            assert one["counts"] == CALIBRATION.counts and one["coverage"] == CALIBRATION.coverage
            assert one["most_probable"] == expected.by_rule["most_probable"][row]
            assert one["rounded_mean"] == expected.by_rule["rounded_mean"][row]
            assert one["median"] == expected.by_rule["median"][row]
            assert one["set"] == [expected.low[row], expected.high[row]] and one["unsure"] == expected.unsure[row]


def test_a_record_gets_its_error_probability_or_the_reason_why_there_is_none(client: httpx.Client) -> None:
    image = bin_images()[0]
    found = client.post("/invocations", params={"expected": 3}, content=image, headers=JPEG).json()
    row = np.array([found["probabilities"]])
    probability = error_probability(row, CALIBRATION.counts, np.array([3]), CALIBRATION.record_error_rate)[0]
    assert found["record"] == {"expected": 3, "error_probability": pytest.approx(probability)}
    for count in (0, 4, 6):
        check = client.post("/invocations", params={"expected": count}, content=image, headers=JPEG).json()["record"]
        assert check["error_probability"] is None
        assert check["reason"] == f"the model distinguishes the counts 2, 3, 5, not {count}"
    both = [
        client.post("/invocations", files=form(image, image), data={"expected": ["5", ""]}),
        client.post("/invocations", json={"images": encoded(image, expected=5)["images"] + encoded(image)["images"]}),
    ]
    for response in both:
        first, second = response.json()["predictions"]
        assert (
            first["record"]["expected"] == 5 and first["record"]["error_probability"] > 0.5 and "record" not in second
        )


LAMPS = {"LAMP": 2, "CLOCK": 1}


def test_a_record_is_judged_by_its_photograph_and_by_what_it_lists(client: httpx.Client) -> None:
    image, lists = bin_images()[0], Lists(*product_arrays([listed_products(record_text(**LAMPS).encode())]))
    bare = client.post("/invocations", json=encoded(image)).json()["predictions"][0]
    answers = [
        client.post("/invocations", json=encoded(image, record=record(**LAMPS))),
        client.post("/invocations", json=encoded(image, record=record(**LAMPS), expected=3), params={"expected": 5}),
        client.post("/invocations", files=[*form(image), ("records", ("bin.json", record_text(**LAMPS)))]),
    ]
    for (found,) in (one.json()["predictions"] for one in answers):
        given, check = found.pop("given_products"), found.pop("record")
        assert found == bare, "the photograph's own count is unchanged to the last digit"

        probabilities = np.array([bare["probabilities"]])
        expected = record_model().count_given_products(probabilities, saw([image]).tables, lists)
        assert given["probabilities"] == pytest.approx(expected[0].tolist(), abs=1e-4)
        assert given["unsure"] == predict_counts(expected, record_model().answers).unsure[0]
        judged = judge(record_model(), probabilities, lists, CALIBRATION.record_error_rate)
        assert (check["expected"], check["error_probability"]) == (3, judged.error[0])
        assert check["error_by_list"] == judged.error_by_list[0] and check["likely_count"] in CALIBRATION.counts
        chances = [one["probability"] for one in check["hypotheses"]]
        assert chances == sorted(chances, reverse=True) and sum(chances) == pytest.approx(1, abs=0.05)
        for one in check["hypotheses"]:
            product = one["product"]
            assert (one["kind"] in ("quantity", "missing")) == (product is not None)
            assert product is None or (one["name"], one["recorded"]) == (f"Product {product}", LAMPS[product])
        assert check["hypotheses"][0]["text"] in check["verdict"] and len(check["evidence"]["text"]) == 2


def test_each_photograph_is_read_with_its_own_record(client: httpx.Client) -> None:
    images = bin_images()[:5]
    records = [{"A": 2}, None, {"A": 1, "B": 1}, {"A": 1, "B": 1, "C": 1}, {"B": 2}]
    texts = ["" if one is None else record_text(**one) for one in records]
    listed = [
        encoded(image, **({"record": json.loads(text)} if text else {}))
        for image, text in zip(images, texts, strict=True)
    ]
    answers = [
        client.post("/invocations", json={"images": [one["images"][0] for one in listed]}),
        client.post("/invocations", files=[*form(*images), *(("records", (None, text)) for text in texts)]),
    ]
    rows = [row for row, text in enumerate(texts) if text]
    seen, lists = saw([images[row] for row in rows]), Lists.of([listed_products(texts[row].encode()) for row in rows])
    expected, swapped = (
        record_model().count_given_products(seen.probabilities, tables, lists)
        for tables in (seen.tables, np.roll(seen.tables, 1, 0))
    )
    assert np.abs(expected - swapped).max(1).min() > 0.01, "else equality would show nothing"
    for found in (one.json()["predictions"] for one in answers):
        given = [found[row]["given_products"]["probabilities"] for row in rows]
        np.testing.assert_allclose(given, expected, atol=1e-4)
        assert "given_products" not in found[1]


def test_records_beside_some_of_the_photographs_leave_the_others_as_they_are(client: httpx.Client) -> None:
    images = bin_images()[:5]
    records = [record_text(A=2), "", record_text(A=7), record_text(**dict.fromkeys("ABCDEF", 1)), record_text()]
    parts = [("records", (None, text)) for text in records]
    found = client.post("/invocations", files=[*form(*images), *parts], params={"expected": 2}).json()["predictions"]
    assert ["given_products" in one for one in found] == [True, False, True, False, False]
    assert found[1]["record"].keys() == {"expected", "error_probability"}
    for row, total in ((2, 7), (3, 6), (4, 0)):
        reason = f"the model distinguishes the counts 2, 3, 5, not {total}"
        assert found[row]["record"] == {"expected": total, "error_probability": None, "reason": reason}


def test_a_model_without_a_record_model_says_so(probabilities: Floats) -> None:
    row, products = probabilities[:1], listed_products(record_text(A=3).encode())
    tables = np.zeros((1, 0, 3))
    (known,) = read_records(None, CALIBRATION, row, tables, [products])
    expected = error_probability(row, CALIBRATION.counts, np.array([3]), CALIBRATION.record_error_rate)[0]
    assert known.given_products is None and known.record["error_probability"] == expected
    assert "the model has no records.json" in str(known.record) and "`dvc repro` writes it" in str(known.record)
    (unknown,) = read_records(None, CALIBRATION, row, tables, [products * 2])
    assert unknown.record["error_probability"] is None and "3, 5, not 6; the model has no" in str(unknown.record)


def test_a_model_without_evidence_reads_a_record_with_the_photographs_probabilities(probabilities: Floats) -> None:
    row, products, tables = probabilities[:1], listed_products(record_text(A=1, B=1).encode()), np.zeros((1, 0, 3))
    (found,) = read_records(older_record_model(), CALIBRATION, row, tables, [products])
    expected = older_record_model().count_given_products(row, tables, Lists.of([products]))
    assert found.given_products and found.given_products["probabilities"] == expected[0].tolist()


def test_answers_have_exactly_the_fields_of_the_schema(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    answer = schema["paths"]["/invocations"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator(answer | {"components": schema["components"]})
    records: Sequence[dict[str, int]] = (LAMPS, {"A": 7}, {"A": 2}, dict.fromkeys("ABCDE", 1), {})
    bodies = [
        encoded(bin_images()[0]),
        encoded(bin_images()[0], expected=3),
        encoded(bin_images()[0], expected=4),
        *(encoded(bin_images()[0], record=record(**one)) for one in records),
    ]
    for body in bodies:
        (found,) = client.post("/invocations", json=body).json()["predictions"]
        for content in ({"predictions": [found]}, found):
            validator.validate(content)
        for place in (found, found.get("record"), found.get("given_products")):
            if place is not None:
                place["other"] = 1
                assert not validator.is_valid({"predictions": [found]})
                del place["other"]
        json_schema = schema["components"]["schemas"]["Images"] | {"components": schema["components"]}
        jsonschema.Draft202012Validator(json_schema).validate(body)
    assert client.get("/model").json()["records"] == record_model().model_dump(mode="json")


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes with any size in its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes(100))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def gif() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (20, 20)).save(content, "GIF")
    return content.getvalue()


GOOD = bin_images()[0]
AS_JSON = {"content-type": "application/json"}
AS_FORM = {"content-type": "multipart/form-data; boundary=b"}
PART = b'--b\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n' + GOOD + b"\r\n"
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "empty": ({"content": b"", "headers": JPEG}, 400, "does not decode: it is empty"),
    "gzip": (
        {"content": gzip.compress(GOOD), "headers": JPEG | {"content-encoding": "gzip"}},
        415,
        "the Content-Encoding is 'gzip'",
    ),
    "brotli in chunks": (
        {"content": iter([GOOD]), "headers": JPEG | {"content-encoding": "identity, br"}},
        415,
        "the Content-Encoding is 'identity, br'",
    ),
    "cut short": ({"content": GOOD[: len(GOOD) // 2], "headers": JPEG}, 400, "does not decode"),
    "gif": ({"content": gif(), "headers": JPEG}, 400, "neither JPEG nor PNG"),
    "text": ({"content": GOOD, "headers": {"content-type": "text/plain"}}, 415, "'text/plain'"),
    "huge picture": ({"content": png_header(30000, 30000), "headers": JPEG}, 400, "too large"),
    "huge body": ({"content": bytes(11 * 2**20), "headers": JPEG}, 413, "10,485,760 bytes"),
    "huge body in chunks": ({"content": iter([bytes(2**20)] * 11), "headers": JPEG}, 413, "10,485,760 bytes"),
    "negative record": ({"content": GOOD, "headers": JPEG, "params": {"expected": -1}}, 400, "'-1'"),
    "word as record": ({"content": GOOD, "headers": JPEG, "params": {"expected": "x" * 99}}, 400, "'" + "x" * 40 + "'"),
    "no json": ({"content": b"{", "headers": AS_JSON}, 400, "Invalid JSON"),
    "other json": ({"json": {"pictures": []}}, 400, "images: Field required"),
    "no images": ({"json": {"images": []}}, 400, "images: "),
    "record in json": ({"json": encoded(GOOD, expected=-1)}, 400, "images.0.expected: "),
    "record that adds up to another count": (
        {"json": encoded(GOOD, GOOD, record=record(A=1) | {"EXPECTED_QUANTITY": 2})},
        400,
        "image 1 of 2: quantities add up to 1, EXPECTED_QUANTITY is 2",
    ),
    "record without quantity": (
        {"json": encoded(GOOD, record={"BIN_FCSKU_DATA": {"A": {}}, "EXPECTED_QUANTITY": 0})},
        400,
        "image 1 of 1: an item of the record has no whole quantity",
    ),
    "list as record": ({"json": encoded(GOOD, record=[])}, 400, "images.0.record: "),
    "record with a key twice": (
        {
            "content": json.dumps(encoded(GOOD, record=record(A=2, B=2))).replace('"B"', '"A"').encode(),
            "headers": AS_JSON,
        },
        400,
        "the key 'A' twice",
    ),
    "endless number in a record": (
        {"files": form(GOOD), "data": {"records": '{"EXPECTED_QUANTITY": ' + "9" * 4000 + "}"}},
        400,
        "image 1 of 1: the JSON has a number of 4,000 digits",
    ),
    "two counts": (
        {"json": encoded(GOOD, record=record(A=2), expected=3)},
        400,
        "its 'expected' is 3 and its record's EXPECTED_QUANTITY 2; send one of them",
    ),
    "many products": (
        {"json": encoded(GOOD, record=record(**{f"A{n}": 1 for n in range(MAX_PRODUCTS + 1)}))},
        400,
        "its record lists 65 products, more than 64; send its count as 'expected' instead",
    ),
    "word as record in a form": (
        {"files": form(GOOD), "data": {"records": "x"}},
        400,
        "image 1 of 1: record is not JSON",
    ),
    "too few records in a form": (
        {"files": form(GOOD, GOOD), "data": {"records": record_text(A=2)}},
        400,
        "2 images and 1 parts named 'records'",
    ),
    "no base64": (
        {"json": {"images": [{"data": "QUJé"}]}},
        400,
        "image 1 of 1: its data of 4 characters is not Base64",
    ),
    "number as nan": (
        {"content": b'{"images": [{"data": "QQ==", "expected": NaN}]}', "headers": AS_JSON},
        400,
        "expected",
    ),
    "half a character": ({"content": b'{"\\ud800": 1}', "headers": AS_JSON}, 400, "Invalid JSON"),
    "no utf-8": ({"content": b'{"\xff": 1}', "headers": AS_JSON}, 400, "Invalid JSON"),
    "escape in a key": ({"json": {"\x1b[31m": 1, "images": [{"data": ""}]}}, 400, "\\x1b[31m"),
    "too many in json": ({"json": encoded(*[b"x"] * (MAX_IMAGES + 1))}, 400, "64"),
    "too many files": ({"files": form(*[b"x"] * (MAX_IMAGES + 1))}, 400, "more than 64 parts named 'images'"),
    "one of three": ({"json": encoded(GOOD, gif(), GOOD)}, 400, "image 2 of 3: "),
    "other part": ({"files": {"picture": GOOD}}, 400, "'picture'"),
    "too few records": (
        {"files": form(GOOD, GOOD), "data": {"expected": "1"}},
        400,
        "2 images and 1 parts named 'expected'",
    ),
    "word in form": ({"files": form(GOOD), "data": {"expected": "x"}}, 400, "image 1 of 1: expected is 'x'"),
    "no boundary": ({"content": PART, "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
    "no files": ({"files": {"expected": (None, "3")}}, 400, "no images"),
    "no form": ({"content": b"nothing", "headers": AS_FORM}, 400, "cannot be read"),
    "form cut short": ({"content": PART + b"--b\r\n", "headers": AS_FORM}, 400, "incomplete"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(client: httpx.Client, name: str) -> None:
    request, status, reason = BAD[name]
    response = client.post("/invocations", **request)
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert reason in detail and len(detail) < 300 and "\n" not in detail and set(response.json()) == {"detail"}


def test_a_bad_image_does_not_affect_requests_beside_it(client: httpx.Client, probabilities: Floats) -> None:
    bodies = [body for image in bin_images() for body in (image, image[:999], b"")]
    with ThreadPoolExecutor(len(bodies)) as pool:
        found = list(pool.map(lambda body: client.post("/invocations", content=body, headers=JPEG), bodies))
    assert [one.status_code for one in found] == [200, 400, 400] * len(probabilities)
    np.testing.assert_allclose([one.json()["probabilities"] for one in found[::3]], probabilities, atol=1e-4)


def test_metrics_count_what_happened(client: httpx.Client) -> None:
    def measured() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    before = measured()
    answered = client.post("/invocations", json=encoded(*bin_images()[:3])).json()["predictions"]
    client.post("/invocations", content=b"bad", headers=JPEG)
    between = measured()
    checked = client.post("/invocations?expected=2", content=bin_images()[0], headers=JPEG).json()["record"]
    client.post("/invocations?expected=900", content=bin_images()[0], headers=JPEG)
    judged = {
        name: value - between.get(name, 0)
        for name, value in measured().items()
        if "records_total" in name and value > between.get(name, 0)
    }
    which = "wrong" if checked["error_probability"] > 0.5 else "right"
    assert judged == {f'bintally_records_total{{judged="{which}"}}': 1, 'bintally_records_total{judged="unknown"}': 1}
    after = between
    grown = {name: after[name] - before.get(name, 0) for name in after}
    for count in {one["most_probable"] for one in answered}:
        names = [f'bintally_answers_total{{count="{count}",unsure="{unsure}"}}' for unsure in ("true", "false")]
        of_count = [one for one in answered if one["most_probable"] == count]
        assert sum(grown.get(name, 0) for name in names) == len(of_count)
    ranks = saw(bin_images()[:3]).distance_ranks
    assert grown["bintally_distance_rank_count"] == 3
    assert grown["bintally_distance_rank_sum"] == pytest.approx(ranks.sum(), abs=1e-3)
    assert grown['bintally_distance_rank_bucket{le="0.9"}'] == (ranks <= 0.9).sum()
    assert after['bintally_expected_ratio{of="unsure"}'] == CALIBRATION.unsure
    assert after['bintally_expected_ratio{of="wrong"}'] == CALIBRATION.record_error_rate
    assert grown["bintally_images_total"] == 3 and grown["bintally_batch_images_sum"] == 3
    assert grown['bintally_requests_total{status="200"}'] == grown['bintally_requests_total{status="400"}'] == 1
    assert grown["bintally_request_seconds_count"] == 1 and grown["bintally_decode_seconds_count"] == 4
    assert grown["bintally_inference_seconds_count"] >= 1 and after["bintally_queue_images"] == 0


def head(server: ServerProcess, fields: str, start: str = "POST /invocations") -> bytes:
    return f"{start} HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n{fields}\r\n\r\n".encode()


def connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read_to_the_end(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while more := connection.recv(2**20):
            received += more
    return received


def test_a_client_that_disconnects_leaves_no_slot_taken(server: ServerProcess, client: httpx.Client) -> None:
    for body in (GOOD, GOOD[:100]):
        with connect(server) as connection:
            connection.sendall(head(server, f"content-type: image/jpeg\r\ncontent-length: {len(GOOD)}") + body)
    for _ in range(100):
        if "bintally_queue_images 0.0" in client.get("/metrics").text:
            break
    assert client.post("/invocations", content=GOOD, headers=JPEG).status_code == 200
    assert "bintally_queue_images 0.0" in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/", "/live", "/ready", "/ping", "/model", "/metrics", "/openapi.json"])
def test_head_is_answered_where_get_is(client: httpx.Client, path: str) -> None:
    found, got = client.head(path), client.get(path)
    assert (found.status_code, found.content) == (200, b"") and found.headers["content-type"] == got.headers[
        "content-type"
    ]
    assert int(found.headers["content-length"]) > 0


def test_only_requests_to_its_own_names_are_answered(client: httpx.Client, server: ServerProcess) -> None:
    own = [f"{name}:{server.port}" for name in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]")]
    for name in own:
        assert client.get("/model", headers={"host": name, "origin": f"http://{name}"}).status_code == 200
    others = ["evil.example", f"evil.example:{server.port}", f"127.0.0.1.evil.example:{server.port}", "localhost:1", ""]
    for name in others:
        foreign = client.get("/model", headers={"host": name})
        assert foreign.status_code == 421 and repr(name) in foreign.json()["detail"] and own[0] in foreign.text
    for origin in (*(f"http://{name}" for name in others), f"https://{own[0]}", "null"):
        foreign = client.post("/invocations", content=GOOD, headers=JPEG | {"origin": origin})
        assert foreign.status_code == 403 and repr(origin) in foreign.json()["detail"]
    with connect(server) as sender:
        sender.sendall(
            head(server, "host: evil.example", "GET /model").replace(b"host: 127", b"host: evil\r\nhost: 127")
        )
        assert b" 421 " in sender.recv(9999)


def test_nothing_redirects(server: ServerProcess) -> None:
    for path in ("/live/", "/invocations/", "//evil.example/", "/model/../../etc/passwd", "/%2e%2e/etc/passwd"):
        with connect(server) as sender:
            sender.sendall(head(server, "connection: close", f"GET {path}"))
            answer = read_to_the_end(sender).lower()
        assert answer.startswith(b"http/1.1 404 ") and b"\r\nlocation" not in answer


CHUNKED, POST = b"transfer-encoding: chunked\r\n", b"POST /invocations HTTP/1.1\r\nhost: HOST\r\n"
REFUSED: dict[str, tuple[bytes, int]] = {
    "long head": (b"GET /live HTTP/1.1\r\nx: " + b"a" * 200_000, 431),
    "many fields": (b"GET /live HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n", 431),
    "many fields at the end": (POST + CHUNKED + b"\r\n0\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1), 431),
    "long url": (b"GET /" + b"a" * MAX_URL + b" HTTP/1.1\r\nhost: HOST\r\n\r\n", 414),
    "no http": (b"hello\r\n\r\n", 400),
    "bad chunk": (POST + CHUNKED + b"\r\nxyz\r\n", 400),
    "many chunks": (POST + CHUNKED + b"\r\n" + b"1\r\nx\r\n" * (MAX_CHUNKS + 1), 400),
    "two lengths": (POST + b"content-length: 4\r\ncontent-length: 5\r\n\r\n12345", 400),
    "length and chunks": (POST + CHUNKED + b"content-length: 4\r\n\r\n0\r\n\r\n", 400),
    "other coding": (POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "compressed chunks": (POST + b"connection: close\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 415),
    "coding behind chunks": (POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "length of many digits": (POST + b"content-length: " + b"9" * 5000 + b"\r\n\r\n", 400),
    "tunnel": (b"CONNECT evil.example:80 HTTP/1.1\r\nhost: HOST\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_malformed_http_is_refused(server: ServerProcess, name: str) -> None:
    request, status = REFUSED[name]
    with connect(server) as sender:
        with suppress(ConnectionError):  # it is refused before all of it is sent
            sender.sendall(request.replace(b"HOST", f"127.0.0.1:{server.port}".encode()))
        answer = read_to_the_end(sender)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and b'{"detail":"' in answer


def test_many_requests_at_once_on_a_connection_close_it(server: ServerProcess) -> None:
    requests = head(server, "", "GET /live") * (MAX_PIPELINED + 1)
    with connect(server) as sender:
        sender.sendall(requests)
        received = b""
        while received.count(b'{"state":"running"}') <= MAX_PIPELINED:
            received += sender.recv(9999)
    with connect(server) as sender, suppress(ConnectionError):  # while the first are decoded
        sender.sendall(head(server, "content-type: image/jpeg\r\ncontent-length: 1") + b"x" + requests * 1000)
        read_to_the_end(sender)
    with connect(server) as sender, suppress(ConnectionError):
        sender.sendall(requests * 1000)
        assert read_to_the_end(sender).count(b" 200 ") <= MAX_PIPELINED + 1


def test_a_connection_that_asks_for_another_protocol_is_answered_and_closed(server: ServerProcess) -> None:
    for protocol in ("websocket", "h2c"):  # as Java's client asks with its first request
        with connect(server) as sender:
            sender.sendall(head(server, f"connection: upgrade\r\nupgrade: {protocol}", "GET /live"))
            answer = read_to_the_end(sender).lower()
        assert answer.startswith(b"http/1.1 200 ") and b"\r\nconnection: close\r\n" in answer


def test_clients_that_send_nothing_keep_nobody_out(server: ServerProcess, client: httpx.Client) -> None:
    with ExitStack() as stack:
        for _ in range(64):  # as many as the queue has slots
            stack.enter_context(connect(server)).sendall(head(server, "content-type: image/jpeg\r\ncontent-length: 9"))
        assert client.post("/invocations", content=GOOD, headers=JPEG).status_code == 200
        for _ in range(MAX_CONNECTIONS + 200):
            stack.enter_context(connect(server))
        with httpx.Client(base_url=server.url) as late:
            assert late.get("/live").status_code == 200
            assert late.post("/invocations", content=GOOD, headers=JPEG).status_code == 200
        assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < MAX_CONNECTIONS + 100


def test_clients_that_owe_the_body_of_a_pipelined_request_keep_nobody_out(
    server: ServerProcess, client: httpx.Client
) -> None:
    both = head(server, "", "GET /live") + head(server, "content-type: image/jpeg\r\ncontent-length: 9")
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 20):
            connection = stack.enter_context(connect(server))
            connection.sendall(both)
            assert connection.recv(9999).startswith(b"HTTP/1.1 200 ")
        assert client.get("/live").status_code == 200


def test_responses_match_the_openapi_schema_and_slow_clients_are_disconnected(
    server: ServerProcess, tmp_path: Path
) -> None:
    half_a_body = head(server, "content-type: image/jpeg\r\ncontent-length: 99") + b"half"
    with ExitStack() as stack:
        slow = []
        for start in (b"", b"GET /li", head(server, "x: ")[:-4], half_a_body):
            slow.append(stack.enter_context(connect(server)))
            slow[-1].sendall(start)
        for number in (1, 8):  # requests that come at once
            never_reads = stack.enter_context(socket.socket())
            # Before it connects: if its window shrinks, Linux drops all that comes, even the reset.
            never_reads.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            never_reads.settimeout(30)
            never_reads.connect(("127.0.0.1", server.port))
            with pytest.raises(ConnectionError):
                for _ in range(5000):
                    never_reads.sendall(head(server, "", "GET /openapi.json") * number)
                    time.sleep(0.005)  # so that all of them are answered, but for the last

        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        # No schema can tell which bytes are an image.
        command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
        command += ["--phases", "coverage,fuzzing", "--max-examples", "40", "--seed", "1", "--no-color"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout[-5000:]

        responses = [read_to_the_end(connection) for connection in slow]
    assert responses[:3] == [b""] * 3
    assert responses[3].startswith(b"HTTP/1.1 408 ") and b"4 bytes came within 10 s" in responses[3]
