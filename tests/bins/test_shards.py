"""Shards: every byte comes back, and equal bins give equal files."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bintally.bins import shards
from bintally.bins.shards import Bin, Entry, ShardReader, read_index, write_shards
from bintally.errors import UserError


def bins(number: int = 12) -> Iterator[Bin]:
    """Bins of many sizes: some fill a tar block exactly, some photographs are empty."""
    random = np.random.default_rng(3)
    for place in range(number):
        image, record = random.bytes(512 * (place % 3) + (place % 2) * 77), random.bytes(100 + place)
        yield Bin(f"{place:05d}", place % 4, f"{place // 2:05d}", image, record)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Entry]]:
    monkeypatch.setattr(shards, "SHARD_BYTES", 6_000)
    return tmp_path / "bins", write_shards(tmp_path / "bins", bins())


def test_every_bin_comes_back_byte_for_byte_from_several_shards(written: tuple[Path, list[Entry]]) -> None:
    folder, entries = written
    assert len({entry.shard for entry in entries}) > 2
    assert read_index(folder) == entries
    reader = ShardReader(folder)
    read = [Bin(e.id, e.count, e.group, reader.image(e), reader.record(e)) for e in entries]
    assert read == list(bins())


def test_every_shard_but_the_last_has_the_minimum_size(written: tuple[Path, list[Entry]]) -> None:
    sizes = [path.stat().st_size for path in sorted(written[0].glob("*.tar"))]
    assert all(size >= 6_000 for size in sizes[:-1])


def test_any_tar_program_can_read_a_shard(written: tuple[Path, list[Entry]]) -> None:
    folder, _ = written
    members: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                members[member.name] = file.read()
    expected: dict[str, bytes] = {}
    for one in bins():
        expected |= {f"{one.id}.jpg": one.image, f"{one.id}.json": one.record}
    assert members == expected
    assert list(members) == list(expected)


def test_equal_bins_give_equal_files(written: tuple[Path, list[Entry]], tmp_path: Path) -> None:
    write_shards(tmp_path / "again", bins())
    first, again = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (written[0], tmp_path / "again")
    )
    assert first == again


def test_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "bins-00000.tar").symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"disk is full.*{tmp_path}"):
        write_shards(tmp_path, bins())


@pytest.mark.parametrize("kept", [None, 0, 512])
def test_a_shard_that_is_missing_or_truncated_is_a_user_error(tmp_path: Path, kept: int | None) -> None:
    entry = write_shards(tmp_path, bins())[1]  # whose photograph is not empty
    if kept is None:
        (tmp_path / entry.shard).unlink()
    else:
        os.truncate(tmp_path / entry.shard, kept)
    reader = ShardReader(tmp_path)
    for read in (reader.image, reader.record):
        with pytest.raises(UserError, match=rf"{tmp_path}/bins-00000\.tar' is missing or truncated: `dvc checkout"):
            read(entry)
