"""Every kind of source gives its photographs in order, with the bytes of their files."""

import shutil
from pathlib import Path

import pytest

from bintally.apps import photographs
from bintally.apps.photographs import ReadFiles, open_photographs
from bintally.bins.shards import Bin, write_shards
from bintally.bins.source import image_key, record_key
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
    Path("ids.txt").write_text("b.JPG\n")
    assert open_photographs("album", ids=Path("ids.txt")).ids == ["b.JPG"]


def test_a_changed_file_changes_the_version() -> None:
    before = open_photographs("layout").version
    assert open_photographs("layout").version == before
    Path("layout", image_key("03")).write_bytes(b"other image")
    assert open_photographs("layout").version != before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "'nowhere' is neither data, demo, s3://"),
        ("s3://", "'s3://' must be of the form s3://bucket"),
        ("empty", "empty holds no photographs"),
        ("binary.txt", "'binary.txt' is not a text file"),
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
