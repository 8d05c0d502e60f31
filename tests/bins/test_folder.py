"""A folder with the layout of the bucket, and odd files in it."""

import os
import resource
import socket
from pathlib import Path

import pytest

from bintally.bins import images, objects
from bintally.bins.objects import Unread, image_key, record_key
from bintally.bins.source import open_source
from bintally.errors import UserError
from s3_stub import fetch_params

NOT_ORDINARY = Unread("is not an ordinary file")
LEADS_OUT = Unread("is a link that leads out of the source's folder")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("metadata", "bin-images"):
        (tmp_path / "source" / name).mkdir(parents=True)
    return tmp_path / "source"


def test_a_folder_lists_its_ids_and_gives_exact_bytes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {record_key("00002"): b"{}", record_key("1"): b"\x00\xff", image_key("00002"): b"jpeg"}
    odd = ["no id.json", "._1.json", "x" * 65 + ".json", "\x1b[2J.json", "é\n.json", "..json", "\udcff.json"]
    for name in (*odd, "readme.txt", ".DS_Store", ".json"):
        (folder / "metadata" / name).write_bytes(b"")
    for key, body in files.items():
        (folder / key).write_bytes(body)
    source = open_source(fetch_params(folder))
    assert source.ids() == ["00002", "1"]
    assert dict(source.read([*files, image_key("1")])) == {**files, image_key("1"): None}
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.isprintable() and "8 records are left out" in line and "'._1.json'" in line


def test_a_folder_without_records_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path} has no metadata/<id>\.json"):
        open_source(fetch_params(tmp_path)).ids()


def test_records_that_are_no_folder_are_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "metadata").write_bytes(b"")
    with pytest.raises(UserError, match=r"metadata' cannot be listed: Not a directory"):
        open_source(fetch_params(tmp_path)).ids()
    assert dict(open_source(fetch_params(tmp_path)).read([record_key("1")])) == {record_key("1"): None}


def test_links_are_followed_inside_the_folder_and_other_kinds_of_files_are_not_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, photographs = folder.parent / "outside.jpg", folder / "bin-images"
    outside.write_bytes(b"private")
    (photographs / "good.jpg").write_bytes(b"good")
    for name, target in {
        "inside": "good.jpg",
        "inside-through-parent": "../bin-images/good.jpg",
        "out": str(outside),
        "out-relative": "../../outside.jpg",
        "out-by-two-links": "out.jpg",
        "device": "/dev/zero",
        "dangling": "nothing.jpg",
    }.items():
        (photographs / f"{name}.jpg").symlink_to(target)
    (photographs / "loop.jpg").symlink_to("loop.jpg")
    (photographs / "folder.jpg").mkdir()
    os.mkfifo(photographs / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(photographs)  # the path of a socket is short
        listener.bind("socket.jpg")
        names = [path.stem for path in photographs.iterdir()]
        read = dict(open_source(fetch_params(folder)).read([image_key(name) for name in names]))
    loop = read.pop(image_key("loop"))
    assert isinstance(loop, Unread) and loop.reason.startswith("cannot be read: ")
    assert read == {
        image_key("good"): b"good",
        image_key("inside"): b"good",
        image_key("inside-through-parent"): b"good",
        image_key("out"): LEADS_OUT,
        image_key("out-relative"): LEADS_OUT,
        image_key("out-by-two-links"): LEADS_OUT,
        image_key("device"): LEADS_OUT,
        image_key("dangling"): None,
        image_key("folder"): NOT_ORDINARY,
        image_key("fifo"): NOT_ORDINARY,
        image_key("socket"): NOT_ORDINARY,
    }


def test_a_file_of_a_gigabyte_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (record_key("1"), image_key("1")):
        with (folder / key).open("wb") as file:
            file.truncate(2**30)
    monkeypatch.setattr(os, "open", None)
    assert dict(open_source(fetch_params(folder)).read([record_key("1"), image_key("1")])) == {
        record_key("1"): Unread("is larger than 4,000,000 bytes"),
        image_key("1"): Unread("is larger than 100,000,000 bytes"),
    }
    assert images.MAX_BYTES <= objects.MAX_BYTES_HELD


def test_too_many_open_files_are_no_fault_of_a_bin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / record_key("1")).write_bytes(b"{}")
    source, (_, hard) = open_source(fetch_params(folder)), resource.getrlimit(resource.RLIMIT_NOFILE)

    def few_files(path: Path, flags: int) -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        return opened(path, flags)

    opened, limit = os.open, resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(os, "open", few_files)
    try:
        with pytest.raises(UserError, match=r"too many files are open: lower fetch\.concurrency"):
            list(source.read([record_key("1")]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


@pytest.mark.parametrize("part", ["metadata", "bin-images"])
def test_a_source_whose_folder_is_elsewhere_is_refused(folder: Path, part: str) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder / part).rmdir()
    (folder / part).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(UserError, match=rf"source/{part}' is a link that leads out of the folder"):
        open_source(fetch_params(folder))


def test_a_source_may_itself_be_a_link(folder: Path) -> None:
    (folder / record_key("1")).write_bytes(b"{}")
    (folder.parent / "link").symlink_to(folder)
    source = open_source(fetch_params(folder.parent / "link"))
    assert dict(source.read([record_key("1")])) == {record_key("1"): b"{}"}
