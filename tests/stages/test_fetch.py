"""The fetch stage on a source with odd objects: they are set aside by name, the rest is written, the same each time."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest
import yaml
from PIL import Image

from bintally.bins.objects import image_key, record_key
from bintally.bins.shards import read_index
from bintally.errors import UserError
from bintally.files import read_csv
from bintally.params import Params, load_params
from bintally.paths import BINS
from bintally.stages import fetch
from s3_stub import Answer, Request, error, listing, stub_server

ROOT = Path(__file__).parents[2]
FETCH = "from bintally.params import load_params; from bintally.stages import fetch; fetch.main(load_params())"
GOOD = [f"{number:05d}" for number in range(1, 9)]


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 90, 30)).save(file, "JPEG")
    return file.getvalue()


def record(count: int) -> bytes:
    return json.dumps({"BIN_FCSKU_DATA": {"B1": {"quantity": count}}, "EXPECTED_QUANTITY": count}).encode()


def objects(ids: list[str]) -> dict[str, bytes]:
    made = {}
    for number, bin_id in enumerate(ids):
        made[record_key(bin_id)], made[image_key(bin_id)] = record(1 + number % 2), jpeg(number)
    return made


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def params(source: str, **changes: object) -> Params:
    whole = load_params(ROOT / "params.yaml").model_dump()
    whole["fetch"] |= {"source": source, "counts": [1, 2], "per_count": None, "concurrency": 4} | changes
    whole["train"] |= {"counts": None}
    whole["calibrate"] |= {"counts": None}
    return Params.model_validate(whole)


def written() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in BINS.iterdir()}


def test_odd_files_of_a_folder_are_rejected_by_name_and_two_runs_write_the_same(workspace: Path) -> None:
    source = workspace / "source"
    bad = ["huge", "link", "fifo", "folder", "garbage", "empty", "many-digits"]
    for key, body in objects(GOOD + bad).items():
        path = source / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    for name in ("link", "fifo", "folder"):
        (source / image_key(name)).unlink()
    (workspace / "private.jpg").write_bytes(jpeg(99))
    (source / image_key("link")).symlink_to(workspace / "private.jpg")
    os.mkfifo(source / image_key("fifo"))
    (source / image_key("folder")).mkdir()
    with (source / image_key("huge")).open("ab") as file:
        file.truncate(2**30)
    (source / image_key("garbage")).write_bytes(b"\xff\xd8\xff" + bytes(3000))
    (source / image_key("empty")).write_bytes(b"")
    (source / record_key("many-digits")).write_bytes(
        b'{"BIN_FCSKU_DATA": {"a": {"quantity": %s}}, "EXPECTED_QUANTITY": 1}' % (b"9" * 4300)
    )
    (source / "metadata/.DS_Store").write_bytes(b"")

    fetch.main(params(str(source)))
    assert [entry.id for entry in read_index(BINS)] == GOOD
    reasons = {row["id"]: row["reason"] for row in read_csv(BINS / "rejected.csv")}
    assert sorted(reasons) == sorted(bad)
    assert reasons["huge"] == "image is larger than 100,000,000 bytes"
    assert reasons["link"] == "image is a link that leads out of the source's folder"
    assert reasons["fifo"] == reasons["folder"] == "image is not an ordinary file"
    assert all(len(reason) <= 200 and reason.isprintable() and " at 0x" not in reason for reason in reasons.values())
    first = written()
    fetch.main(params(str(source)))
    assert written() == first
    assert not any(Path(".bintally/fetch").iterdir())


def test_what_a_table_has_wrong_is_said_with_its_row_or_its_photograph(workspace: Path) -> None:
    stock = workspace / "stock"
    stock.mkdir()
    rows = [
        "Lager Nord,,",
        "photograph,count,id,items",
        "good.jpg,1,",
        "bad.jpg,1,7",
        "none.jpg,1,",
        "good.jpg,x,8",
        "two.jpg,2,",
        f'odd.jpg,1,9,"{{""{"p" * 101}"": 1}}"',
    ]
    (stock / "list.csv").write_text("\n".join(rows))
    for name in ("good", "two"):
        (stock / f"{name}.jpg").write_bytes(objects(GOOD)[image_key(GOOD[0])])
    (stock / "bad.jpg").write_bytes(b"nothing")
    fetch.main(params(str(stock / "list.csv")))
    assert [entry.id for entry in read_index(BINS)] == ["good", "two"]
    reasons = {row["id"]: row["reason"] for row in read_csv(BINS / "rejected.csv")}
    assert reasons["7"].endswith(": bad.jpg") and reasons["none"] == "image is missing: row 5 names 'none.jpg'"
    assert reasons["8"] == "record cannot be made: row 6 has a wrong cell: count is 'x', not a number: good.jpg"
    assert reasons["9"] == "the key of an item is longer than 100 characters: odd.jpg"


def test_a_bucket_with_a_bin_that_is_denied_gives_the_rest(workspace: Path) -> None:
    held = objects(GOOD)

    def answer(request: Request) -> Answer:
        if request.query:
            return listing([*(key for key in held if key.startswith("metadata/")), "metadata/denied.json"])
        return Answer(held[request.key]) if request.key in held else error(403, "AccessDenied")

    with stub_server(answer) as stub:
        fetch.main(params("s3://b", endpoint=stub.endpoint))
    assert [entry.id for entry in read_index(BINS)] == GOOD
    assert read_csv(BINS / "rejected.csv") == [{"id": "denied", "reason": "record cannot be read: access denied"}]


def test_a_fetch_that_fails_leaves_the_earlier_bins_and_the_next_one_sees_what_has_changed(workspace: Path) -> None:
    for key, body in objects(GOOD).items():
        path = workspace / "source" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    fetch.main(params("source"))
    first = written()
    for bin_id in GOOD[1::2]:
        (workspace / "source" / record_key(bin_id)).write_bytes(record(1))
    (workspace / "source" / image_key(GOOD[0])).unlink()
    with pytest.raises(UserError, match="no usable bin with count 2"):
        fetch.main(params("source"))
    assert written() == first
    for key, body in objects(GOOD).items():
        (workspace / "source" / key).write_bytes(body)
    fetch.main(params("source"))
    assert written() == first


def test_a_second_fetch_at_once_is_refused_and_a_killed_one_goes_on(workspace: Path) -> None:
    held, sent = objects(GOOD), list[str]()
    reached, go_on = Event(), Event()

    def answer(request: Request) -> Answer:
        if request.query:
            return listing([key for key in held if key.startswith("metadata/")])
        etag = f'"{hashlib.md5(held[request.key]).hexdigest()}"'  # noqa: S324
        if request.headers.get("if-none-match") == etag:
            return Answer(status=304)
        if request.key == image_key(GOOD[-1]):
            reached.set()
            go_on.wait(60)
        sent.append(request.key)
        return Answer(held[request.key])

    with stub_server(answer) as stub:
        Path("params.yaml").write_text(yaml.safe_dump(params("s3://b", endpoint=stub.endpoint).model_dump()))
        with subprocess.Popen([sys.executable, "-c", FETCH]) as first:
            assert reached.wait(60)
            with pytest.raises(UserError, match="another fetch is under way"):
                fetch.main(load_params())
            first.kill()
        go_on.set()
        fetch.main(load_params())
    assert [entry.id for entry in read_index(BINS)] == GOOD
    assert all(sent.count(record_key(bin_id)) == 1 for bin_id in GOOD)
