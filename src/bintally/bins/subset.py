"""The selection of bins from a source, and the check of each one."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from sys import intern

import numpy as np

from bintally.bins.groups import group_bins
from bintally.bins.id_list import read_id_list, with_lost_zeros
from bintally.bins.images import BadImage, decode_image
from bintally.bins.objects import DENIED, SIGN, MemoryLimit, Unread, image_key, record_key
from bintally.bins.record import BadBin, parse_record
from bintally.bins.shards import Bin
from bintally.bins.source import Source
from bintally.bins.staging import Staging
from bintally.errors import UserError, printable
from bintally.params import Fetch
from bintally.progress import progress

log = logging.getLogger("bintally.subset")
BATCH = 2048  # bins, of which some may turn out not to be needed
BATCH_OF_ALL = 16_384  # if all are; the end of each batch waits for the slowest answers and for those tried again
DECODERS = min(8, len(os.sched_getaffinity(0)))
MAX_BYTES_WAITING = 2**27  # of photographs to decode
MAX_REASON = 200  # characters


@dataclass(frozen=True)
class Subset:
    """The selected bins and the rejected ones, by id."""

    counts: dict[str, int]  # of the selected bins
    groups: dict[str, str]  # of the selected bins
    rejected: dict[str, str]  # the reason for each rejected bin


def select_bins(source: Source, fetch: Fetch, staging: Staging) -> Subset:
    """Select the bins that ``fetch`` describes; their objects are in ``staging`` afterwards.

    Candidates are checked in order, the record first and the image only if the bin may be selected, until each count
    has `fetch.per_count` good bins. The selection does not depend on concurrency or interruptions.

    Raises UserError if no bin, or none of one count, can be used.
    """
    if fetch.ids:
        candidates = read_id_list(Path(fetch.ids))
    else:
        ids = source.ids()
        candidates = [ids[index] for index in np.random.default_rng(fetch.seed).permutation(len(ids))]
    limit = fetch.per_count or len(candidates)
    goal = min(limit * len(fetch.counts), len(candidates))
    asins: dict[str, tuple[str, ...]] = {}  # of the records that can be read; nothing else of them is kept
    bins: dict[str, str] = {}
    counts: dict[str, int] = {}
    rejected: dict[str, str] = {}
    selected: Counter[int] = Counter()
    with progress("fetch", goal, "bins") as advance, _Decoders() as decoders:
        size = BATCH if fetch.per_count else BATCH_OF_ALL
        for start in range(0, len(candidates), size):
            if all(selected[count] >= limit for count in fetch.counts):
                break
            batch = candidates[start : start + size]
            for _ in staging.fetch(source, map(record_key, batch)):
                advance(0)
            labels: dict[str, int] = {}
            usable: list[str] = []
            for bin_id in batch:
                try:
                    record = parse_record(_present(staging.get(record_key(bin_id)), "record"))
                except BadBin as reason:
                    rejected[bin_id] = _short(reason)
                    continue
                asins[bin_id] = tuple(map(intern, record.asins))
                if record.bin is not None:
                    bins[bin_id] = record.bin
                labels[bin_id] = min(record.count, fetch.counts[-1]) if fetch.open_ended else record.count
                if labels[bin_id] in fetch.counts:
                    usable.append(bin_id)
            if not asins and set(rejected.values()) == {f"record {DENIED.reason}"}:
                remedy = f"check fetch.source, or {SIGN}"
                records_denied = f"each of {len(rejected)} records, such as {record_key(batch[0])}"
                raise UserError(f"{fetch.source}: access denied to {records_denied}; {remedy}")
            if not fetch.per_count:  # the goal is then all candidates, those of other counts included
                advance(len(batch) - len(usable))
            # Repeated while bad images leave room for the next bins of their counts.
            while wanted := _first_with_room(usable, labels, {n: limit - selected[n] for n in fetch.counts}):
                checks: dict[str, Future[str]] = {}
                for key in staging.fetch(source, map(image_key, wanted)):
                    if staging.defect(key) is None:
                        checks[key] = decoders.check(staging.get(key))
                    advance(1)
                for key, check in checks.items():
                    staging.keep_defect(key, check.result())
                for bin_id in wanted:
                    if defect := staging.defect(image_key(bin_id)):
                        rejected[bin_id] = defect
                        if fetch.per_count:  # another bin replaces it
                            advance(-1)
                    else:
                        counts[bin_id] = labels[bin_id]
                        selected[labels[bin_id]] += 1
                usable = [bin_id for bin_id in usable if bin_id not in counts and bin_id not in rejected]
    if fetch.ids:
        _name_lost_zeros(source, fetch.ids, rejected)
    if not counts:
        reasons = Counter(rejected.values()).most_common(1)
        why = f"most often: {reasons[0][0]}" if reasons else "none has one of the counts"
        why += f"; {SIGN}" if reasons and reasons[0][0].endswith(DENIED.reason) else ""
        subject = f"none of {len(candidates)} bins of {fetch.source} with counts {fetch.counts}"
        raise UserError(f"{subject} can be used; {why}")
    for count in fetch.counts:
        if fetch.per_count and selected[count] < fetch.per_count:
            log.warning("count %d: %d bins, fewer than fetch.per_count (%d)", count, selected[count], fetch.per_count)
        if not selected[count]:
            raise UserError(f"{fetch.source} has no usable bin with count {count}; remove it from fetch.counts")
    groups = group_bins(asins, bins)
    return Subset(counts, {bin_id: groups[bin_id] for bin_id in counts}, rejected)


def iter_bins(subset: Subset, staging: Staging) -> Iterator[Bin]:
    """Yield the selected bins with their bytes, in order of id."""
    with progress("write", len(subset.counts), "bins", brief=True) as advance:
        for bin_id in sorted(subset.counts):
            image, record = staging.get(image_key(bin_id)), staging.get(record_key(bin_id))
            assert isinstance(image, bytes) and isinstance(record, bytes)
            yield Bin(bin_id, subset.counts[bin_id], subset.groups[bin_id], image, record)
            advance(1)


def _first_with_room(ids: list[str], labels: dict[str, int], room: dict[int, int]) -> list[str]:
    """The first ids of each count, as many as there is room for."""
    first = []
    for bin_id in ids:
        if room[labels[bin_id]] > 0:
            room[labels[bin_id]] -= 1
            first.append(bin_id)
    return first


def _name_lost_zeros(source: Source, listed: str, rejected: dict[str, str]) -> None:
    """Say in the reasons of ids that are missing which id is probably meant."""
    reasons = ["record is missing", f"record {DENIED.reason}"]
    missing = [bin_id for bin_id, reason in rejected.items() if reason in reasons and bin_id[0] in "123456789"]
    if not missing:
        return
    try:
        lost = with_lost_zeros(missing, source.ids())
    except UserError as error:
        log.info("ids of %s are missing, and the source does not say which it has: %s", listed, error)
        return
    for bin_id, likely in lost.items():
        rejected[bin_id] += f"; the source has {likely}: a spreadsheet may have removed the zeros"
    if lost:
        bin_id, likely = next(iter(lost.items()))
        log.warning(
            "%s: %d ids have probably lost their zeros in a spreadsheet, such as %s for %s: save the list as text",
            *(listed, len(lost), bin_id, likely),
        )


def _present(body: bytes | Unread | None, name: str) -> bytes:
    if not isinstance(body, bytes):
        raise BadBin(f"{name} {body.reason if isinstance(body, Unread) else 'is missing'}")
    return body


def _short(reason: Exception) -> str:
    return printable(str(reason))[:MAX_REASON]


class _Decoders:
    """Threads that decode photographs, of which MAX_BYTES_WAITING are held in memory."""

    def __init__(self) -> None:
        self._pool, self._memory = ThreadPoolExecutor(DECODERS), MemoryLimit(MAX_BYTES_WAITING)

    def __enter__(self) -> "_Decoders":
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def check(self, body: bytes | Unread | None) -> "Future[str]":
        """The defect of a photograph, "" if it has none, as a future; waits while others hold too much memory."""
        size = len(body) if isinstance(body, bytes) else 0
        self._memory.take(size)
        future = self._pool.submit(self._defect, body)
        future.add_done_callback(lambda _: self._memory.give(size))
        return future

    @staticmethod
    def _defect(body: bytes | Unread | None) -> str:
        try:
            decode_image(_present(body, "image"))
        except (BadBin, BadImage) as reason:
            return _short(reason)
        return ""
