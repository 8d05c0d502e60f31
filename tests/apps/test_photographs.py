"""Every kind of source gives its photographs in order, with the bytes of their files."""

import os
import shutil
import threading
import time
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from bintally.apps import photographs
from bintally.apps.photographs import ReadFiles, open_photographs
from bintally.bins import objects
from bintally.bins.images import MAX_BYTES
from bintally.bins.objects import image_key, record_key
from bintally.bins.shards import Bin, write_shards
from bintally.errors import UserError

ROOT = Path(__file__).parents[2]


def contents(read_files: ReadFiles | None, ids: list[str]) -> list[tuple[str, bytes | None]]:
    assert read_files
    found: list[tuple[str, bytes | None]] = []
    for one, read in read_files(ids):
        try:
            found.append((one, read()))
        except OSError:
            found.append((one, None))
    return found


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three bins, in shards and laid out like the bucket; there the image of the second is missing."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    three = [Bin(f"0{number}", number, "g", b"image%d" % number, b"record%d" % number) for number in (1, 2, 3)]
    write_shards(Path("data/bins"), three)
    for one in three:
        for key, body in ((image_key(one.id), one.image), (record_key(one.id), one.record)):
            path = Path("layout", key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
    Path("layout", image_key("02")).unlink()
    return tmp_path


def test_bins_in_shards_and_laid_out_like_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "READ_AHEAD", 2)  # fewer than there are
    for source, second in (("data", b"image2"), ("layout", None)):
        found = open_photographs(source)
        assert found.ids == ["01", "02", "03"]
        assert contents(found.images, found.ids) == [("01", b"image1"), ("02", second), ("03", b"image3")]
        assert contents(found.records, ["03", "01"]) == [("03", b"record3"), ("01", b"record1")]


def test_listed_ids_are_used_in_their_order(tmp_path: Path) -> None:
    Path("ids.txt").write_text("03\n9\n01\n03\n")
    for source in ("data", "layout"):
        found = open_photographs(source, ids=Path("ids.txt"))
        assert found.ids == ["03", "9", "01"]
        assert contents(found.images, found.ids) == [("03", b"image3"), ("9", None), ("01", b"image1")]


def test_a_folder_of_files_at_any_depth_and_a_list_of_files(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.png", "a/ä.jpeg", "a/notes.txt"):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = open_photographs("album")
    assert found.ids == ["a/c.png", "a/ä.jpeg", "b.JPG"] and found.records is None
    assert [body and body.decode() for _, body in contents(found.images, found.ids)] == found.ids
    Path("list.txt").write_text(f"album/b.JPG\n\n{tmp_path}/album/a/c.png\nalbum/none.jpg\n")
    found = open_photographs("list.txt")
    assert [body for _, body in contents(found.images, found.ids)] == [b"b.JPG", b"a/c.png", None]
    Path("list.txt").write_text("03\n01\n")
    found = open_photographs("list.txt")
    assert contents(found.images, found.ids) == [("03", b"image3"), ("01", b"image1")]
    found = open_photographs("album/b.JPG")
    assert contents(found.images, found.ids) == [("album/b.JPG", b"b.JPG")]
    Path("ids.txt").write_text("b.JPG\n")
    assert open_photographs("album", ids=Path("ids.txt")).ids == ["b.JPG"]


def test_names_are_ids_in_one_line_of_utf_8() -> None:
    """Whatever can be written stays as it is; line ends, control characters and other bytes become escapes."""
    ids = {
        "棚\u3000一.jpg": "棚\u3000一.jpg",
        "v\u00a013.05.jpg": "v\u00a013.05.jpg",
        "9.22.20\u202fPM.jpg": "9.22.20\u202fPM.jpg",
        " -x.jpg": " -x.jpg",
        "--to.jpg": "--to.jpg",
        "a'b\"c.jpg": "a'b\"c.jpg",
        "two\nlines.jpg": "two\\nlines.jpg",
        "two\u2028lines.jpg": "two\\u2028lines.jpg",
        "red\x1b[31m.jpg": "red\\x1b[31m.jpg",
        os.fsdecode(b"caf\xe9.jpg"): "caf\\xe9.jpg",
        "caf\\xe9.jpg": "caf\\xe9.jpg'",  # written as the one before
    }
    Path("album").mkdir()
    for number, name in enumerate(ids):
        Path("album", name).write_bytes(b"%d" % number)
    found = open_photographs("album")
    assert sorted(found.ids) == sorted(ids.values())
    for number, name in enumerate(ids):
        if not name.startswith("caf"):
            assert contents(found.images, [ids[name]]) == [(ids[name], b"%d" % number)]
    both = [body for _, body in contents(found.images, ["caf\\xe9.jpg", "caf\\xe9.jpg'"])]
    assert set(both) == {b"10", b"9"}
    assert [body for _, body in contents(found.images, found.ids)].count(None) == 0


def test_linked_folders_are_read_once_and_named(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("outside/1.jpg", "album/inside/2.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    for link, to in {
        "aisle": "../outside",
        "again": "inside",
        "loop": ".",
        "self": "self",
        "gone": "../nowhere",
    }.items():
        Path("album", link).symlink_to(to)
    Path("outside/back").symlink_to("../album")
    with caplog.at_level("INFO", "bintally"):
        found = open_photographs("album")
    assert contents(found.images, found.ids) == [
        ("aisle/1.jpg", b"outside/1.jpg"),
        ("gone", None),
        ("inside/2.jpg", b"album/inside/2.jpg"),
        ("self", None),
    ]
    assert caplog.messages == [
        "album: 1 linked folders are read, too: aisle",
        "album: 3 linked folders are left out, as they lead to folders that are read already: again, loop, aisle/back",
    ]


def reasons(read_files: ReadFiles, ids: list[str]) -> dict[str, str]:
    found = {}
    for one, read in read_files(ids):
        try:
            read()
        except OSError as error:
            found[one] = error.strerror or str(error)
    return found


def test_what_is_no_file_cannot_be_read_or_is_too_large_is_set_aside_with_the_reason() -> None:
    album = Path("album")
    (album / "folder.jpg").mkdir(parents=True)
    for name in ("a.jpg", "folder.jpg/b.jpg", "empty.jpg", "vanishes.jpg"):
        (album / name).write_bytes(b"" if name == "empty.jpg" else b"image")
    os.mkfifo(album / "pipe.jpg")
    (album / "device.jpg").symlink_to("/dev/zero")
    with (album / "large.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    found = open_photographs("album")
    (album / "vanishes.jpg").unlink()
    assert reasons(found.images, found.ids) == {
        "device.jpg": "it is not a regular file",
        "large.jpg": f"file of {MAX_BYTES + 1:,} bytes is too large; at most {MAX_BYTES:,} are allowed",
        "pipe.jpg": "it is not a regular file",
        "vanishes.jpg": "No such file or directory",
    }
    assert {"a.jpg", "folder.jpg/b.jpg", "empty.jpg"} < set(found.ids)
    Path("list.txt").write_text(f"album/a.jpg\n{'long' * 1000}.jpg\nalbum/pipe.jpg\n")
    found = open_photographs("list.txt")
    assert list(reasons(found.images, found.ids).values()) == ["File name too long", "it is not a regular file"]


def test_a_folder_that_may_not_be_listed_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    for name in ("locked/1.jpg", "open/2.jpg"):
        Path("album", name).parent.mkdir(parents=True)
        Path("album", name).touch()
    Path("album/locked").chmod(0)
    user = os.geteuid()
    try:
        if not user:
            os.seteuid(65534)  # root may list any folder
        found = open_photographs("album")
        assert found.ids == ["locked", "open/2.jpg"]
        assert reasons(found.images, found.ids) == {"locked": "Permission denied"}
        with pytest.raises(UserError, match=r"'album/locked' cannot be read: Permission denied; check its name and"):
            open_photographs("album/locked")
        with pytest.raises(UserError, match=r"'album/locked/1\.jpg' cannot be read: Permission denied"):
            open_photographs("album/locked/1.jpg")
    finally:
        os.seteuid(user)
        Path("album/locked").chmod(0o700)


def test_lists_may_begin_with_a_byte_order_mark_and_name_a_photograph_twice(caplog: pytest.LogCaptureFixture) -> None:
    Path("a b.jpg").write_bytes(b"image")
    Path("list.txt").write_bytes(b"\xef\xbb\xbfa b.jpg\r\n\r\na b.jpg\r\n")
    with caplog.at_level("INFO", "bintally"):
        found = open_photographs("list.txt")
    assert contents(found.images, found.ids) == [("a b.jpg", b"image")]
    assert caplog.messages == ["list.txt lists 1 photographs more than once; each is taken once"]


def test_large_objects_of_a_source_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    size, number = 2_000_000, 60
    monkeypatch.setattr(objects, "MAX_BYTES_HELD", 4 * size)
    for name in (f"{one:03}" for one in range(number)):
        Path("layout", record_key(name)).write_bytes(b"{}")
        with Path("layout", image_key(name)).open("wb") as file:
            file.truncate(size)
    found = open_photographs("layout")
    tracemalloc.start()
    try:
        lengths = [len(read()) for one, read in found.images([one for one in found.ids if len(one) == 3])]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert lengths == [size] * number
    assert peak < size * number / 2


class SlowSource:
    """Gives its objects at once when first asked, then slowly."""

    def __init__(self) -> None:
        self.given, self.is_slow, self.slow = 0, False, threading.Event()

    def ids(self) -> list[str]:
        return [str(number) for number in range(9000)]

    def digests(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def read(self, keys: Sequence[str], known: Mapping[str, str] | None = None) -> Iterator[tuple[str, bytes]]:
        for key in keys:
            if self.is_slow:
                self.slow.set()
                time.sleep(0.001)
            self.given += 1
            yield key, b""
        self.is_slow = True


def test_what_nobody_waits_for_is_not_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "READ_AHEAD", 3000)
    source = SlowSource()
    reading = photographs._read_ahead(source, image_key, source.ids())
    next(reading)
    assert source.slow.wait(60)
    reading.close()  # type: ignore[attr-defined]
    assert source.given < 6000


def test_access_to_a_bucket_is_part_of_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("ids.txt").write_text("1\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    changes: list[dict[str, object]] = [{}, {}, {"region": "eu-west-1"}, {"anonymous": False}]
    assert len({open_photographs("s3://b", access, Path("ids.txt")).version for access in changes}) == 3


def test_a_changed_file_changes_the_version() -> None:
    before = open_photographs("layout").version
    assert open_photographs("layout").version == before
    Path("layout", image_key("03")).write_bytes(b"other image")
    changed = open_photographs("layout").version
    assert changed != before
    path = Path("layout", image_key("03"))
    status = path.stat()
    path.write_bytes(b"as long now")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns
    assert open_photographs("layout").version != changed


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "'nowhere' is neither data, demo, s3://"),
        ("s3://", "'s3://' must be of the form s3://bucket"),
        ("empty", "empty holds no photographs"),
        ("binary.txt", "'binary.txt' is not a text file"),
        ("x" * 300, "'xxx.*' cannot be read: File name too long; check its name and permissions"),
    ],
)
def test_an_unusable_source_is_a_user_error(source: str, message: str) -> None:
    Path("empty").mkdir()
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=message):
        open_photographs(source)


def test_how_a_bucket_is_accessed_is_checked() -> None:
    with pytest.raises(UserError, match=r"'localhost' must be of the form http://host:port"):
        open_photographs("s3://bucket", {"endpoint": "localhost"})
