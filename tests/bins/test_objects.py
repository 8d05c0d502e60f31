"""Reading with many threads: everything once, in bounded memory, and an end whatever happens."""

import threading
import tracemalloc

import pytest

from bintally.bins import objects
from bintally.bins.objects import Memory, read_concurrently, record_ids

KEYS = [f"{number:03d}" for number in range(200)]


@pytest.mark.parametrize("threads", [1, 16])
def test_each_key_is_read_once(threads: int) -> None:
    read = list(read_concurrently(KEYS, lambda key, _memory: key.encode(), threads))
    assert sorted(read) == [(key, key.encode()) for key in KEYS]
    assert list(read_concurrently([], lambda _key, _memory: b"", threads)) == []


def test_no_more_bytes_are_read_than_may_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "MAX_BYTES_HELD", 100)
    lock, held, most = threading.Lock(), 0, 0

    def read(_key: str, memory: Memory) -> bytes:
        nonlocal held, most
        memory.reserve(30)
        with lock:
            held += 30
            most = max(most, held)
        return bytes(30)

    for _key, body in read_concurrently(KEYS, read, 16):
        with lock:
            assert isinstance(body, bytes)
            held -= len(body)
    assert held == 0 and most <= 100 + 30  # the one that was just taken is still counted


def test_an_error_ends_the_reading_also_for_threads_that_wait_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "MAX_BYTES_HELD", 10)

    def read(key: str, memory: Memory) -> bytes:
        if key == "003":
            raise LookupError(key)
        memory.reserve(10)
        return bytes(10)

    with pytest.raises(LookupError):
        list(read_concurrently(KEYS, read, 16))


def test_a_reader_that_is_given_up_ends_its_threads() -> None:
    before = threading.active_count()
    reading = read_concurrently(KEYS, lambda _key, _memory: b"", 16)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_names_that_are_no_ids_are_counted_and_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    names = (f"{number}.json" if number < 3 else f"{number:04000d}.json" for number in range(5_000))
    tracemalloc.start()
    try:
        assert record_ids(names, "source") == ["0", "1", "2"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # of 20 million characters
    assert "source: 4997 records are left out" in caplog.text
