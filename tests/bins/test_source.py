"""Sources: a folder with the layout of the bucket, and sources that fail. A real S3 server is used in tests/e2e."""

import socket
import time
from pathlib import Path

import pytest

from bintally.bins import source
from bintally.bins.source import image_key, open_source, record_key
from bintally.errors import UserError
from bintally.params import Fetch


def fetch_params(where: str | Path, endpoint: str | None = None) -> Fetch:
    return Fetch(
        source=str(where),
        endpoint=endpoint,
        region="us-east-1",
        anonymous=True,
        ids=None,
        counts=[1, 2],
        open_ended=False,
        per_count=None,
        concurrency=3,
        seed=1,
        demo_bins=4,
    )


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_folder_lists_its_ids_and_gives_exact_bytes(tmp_path: Path) -> None:
    files = {record_key("00002"): b"{}", record_key("1"): b"\x00\xff", image_key("00002"): b"jpeg"}
    for key, body in {**files, "metadata/no id.json": b"", "metadata/readme.txt": b""}.items():
        path = tmp_path / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
    folder = open_source(fetch_params(tmp_path))
    assert folder.ids() == ["00002", "1"]
    assert dict(folder.read([*files, image_key("1")])) == {**files, image_key("1"): None}


def test_a_folder_that_does_not_exist_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"fetch\.source: '{tmp_path}/nowhere'.* nor an existing folder"):
        open_source(fetch_params(tmp_path / "nowhere"))


def test_a_folder_without_records_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path} has no metadata/<id>\.json"):
        open_source(fetch_params(tmp_path)).ids()


def test_a_server_that_is_down_is_a_short_error_that_names_it(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MAX_ATTEMPTS", 2)
    endpoint = f"http://127.0.0.1:{closed_port}"
    down = open_source(fetch_params("s3://bucket/prefix", endpoint))
    start = time.monotonic()
    with pytest.raises(UserError) as listing:
        down.ids()
    with pytest.raises(UserError) as reading:
        list(down.read([record_key(str(number)) for number in range(20)]))
    assert time.monotonic() - start < 10
    for caught in (listing, reading):
        message = str(caught.value)
        assert message.startswith(f"s3://bucket/prefix at {endpoint} cannot be ")
        assert "\n" not in message and len(message) < 400
