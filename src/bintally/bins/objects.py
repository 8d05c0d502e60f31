"""Objects of a source: their keys, and how many threads read them at once in bounded memory."""

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bintally.bins.images import MAX_BYTES
from bintally.bins.record import ID_PATTERN, MAX_RECORD_BYTES
from bintally.errors import UserError, printable

log = logging.getLogger("bintally.source")
RECORDS, IMAGES = "metadata", "bin-images"  # the folders of a source
MAX_BYTES_HELD = 256 * 2**20  # of objects that are read and not yet taken, all threads together
NAMED = 5  # odd names in a message


def record_key(bin_id: str) -> str:
    return f"{RECORDS}/{bin_id}.json"


def image_key(bin_id: str) -> str:
    return f"{IMAGES}/{bin_id}.jpg"


@dataclass(frozen=True)
class Unread:
    """An object that exists, or may exist, and whose bytes were not read."""

    reason: str
    """Why, as words that follow its name: "is not an ordinary file"."""

    def __bool__(self) -> bool:
        return False  # as None and b"": there is nothing to read


DENIED = Unread("cannot be read: access denied")
SIGN = "set fetch.anonymous: false to sign with AWS credentials"
UNCHANGED = Unread("is unchanged")


def max_bytes(key: str) -> int:
    """The largest size of the object of a key, a record or a photograph, in bytes."""
    return MAX_RECORD_BYTES if key.startswith(f"{RECORDS}/") and key.endswith(".json") else MAX_BYTES


def too_large(key: str) -> Unread:
    return Unread(f"is larger than {max_bytes(key):,} bytes")


def record_ids(names: Iterable[str], source: str) -> list[str]:
    """Return the ids of the records with these file names, sorted; names that are no ids are logged, and not kept.

    Raises UserError if there are none.
    """
    ids: set[str] = set()
    odd, first_odd = 0, list[str]()
    for name in names:
        if not name.endswith(".json"):
            continue
        stem = name.removesuffix(".json")
        if ID_PATTERN.fullmatch(stem):
            ids.add(stem)
        else:
            odd += 1
            first_odd = sorted({*first_odd, stem[:80]})[:NAMED]
    if odd:
        some = ", ".join(f"'{printable(stem)}.json'" for stem in first_odd) + (", …" if odd > NAMED else "")
        log.warning(
            "%s: %d records are left out, whose names are no ids (up to 64 letters, digits, - and _): %s",
            *(source, odd, some),
        )
    if not ids:
        raise UserError(f"{source} has no {RECORDS}/<id>.json: check fetch.source and its prefix")
    return sorted(ids)


class Memory:
    """The bytes that are held for one object, out of MAX_BYTES_HELD for all of them."""

    def __init__(self, all_objects: "MemoryLimit") -> None:
        self._all, self._size = all_objects, 0
        self.stopped = all_objects.stopped
        """Set when nobody waits for objects any more."""

    def reserve(self, size: int) -> None:
        """Wait until ``size`` bytes are free, and hold them in place of what was held before."""
        self.release()
        self._all.take(size)
        self._size = size

    def release(self) -> None:
        self._all.give(self._size)
        self._size = 0


class MemoryLimit:
    """A number of bytes that several threads hold together; each object may be that large at most."""

    def __init__(self, size: int) -> None:
        self.stopped = threading.Event()
        self._free, self._changed = size, threading.Condition()

    def take(self, size: int) -> None:
        """Wait until ``size`` bytes are free, or until :meth:`stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size or self.stopped.is_set())
            self._free -= size

    def give(self, size: int) -> None:
        if size:
            with self._changed:
                self._free += size
                self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self.stopped.set()
            self._changed.notify_all()


def read_concurrently(
    keys: Sequence[str], read: Callable[[str, Memory], bytes | Unread | None], threads: int
) -> Iterator[tuple[str, bytes | Unread | None]]:
    """Yield each key with what ``read`` returns for it, as it comes.

    Args:
        read: reserves memory for an object before it reads its bytes; None if there is none. An exception ends the
            reading.
    """
    all_memory, remaining, next_key = MemoryLimit(MAX_BYTES_HELD), iter(keys), threading.Lock()
    done: queue.SimpleQueue[tuple[str, bytes | Unread | None, Memory] | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            while not all_memory.stopped.is_set():
                with next_key:
                    key = next(remaining, None)
                if key is None:
                    return
                memory = Memory(all_memory)
                done.put((key, read(key, memory), memory))
        except BaseException as error:  # noqa: BLE001 (raised again where the objects are taken)
            done.put(error)

    with ThreadPoolExecutor(min(threads, max(len(keys), 1))) as pool:
        try:
            for _ in range(min(threads, len(keys))):
                pool.submit(work)
            for _ in keys:
                taken = done.get()
                if isinstance(taken, BaseException):
                    raise taken
                key, body, memory = taken
                yield key, body
                memory.release()
        finally:
            all_memory.stop()
