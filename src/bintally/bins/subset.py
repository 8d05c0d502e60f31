"""Which bins of a source are taken, and which are turned away."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from bintally.bins.groups import group_bins
from bintally.bins.record import ID_PATTERN, BadBin, Record, check_image, parse_record
from bintally.bins.shards import Bin
from bintally.bins.source import Source, image_key, record_key
from bintally.bins.staging import Staging
from bintally.errors import UserError
from bintally.params import Fetch
from bintally.progress import progress

log = logging.getLogger("bintally.subset")
BATCH = 2048


@dataclass(frozen=True)
class Subset:
    """The outcome of a fetch: accepted bins by id with their count and group, and rejected ids with the reason."""

    counts: dict[str, int]
    groups: dict[str, str]
    rejected: dict[str, str]


def read_id_list(path: Path, key: str = "fetch.ids") -> list[str]:
    """Ids in the order of the file: one a line, or JSON ``{"<count>": ["data/metadata/<id>.json", …], …}``.

    Raises UserError, which names the parameter ``key``, if the file is missing, malformed, empty, or names something that
    cannot be an id.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{key}: cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: '{path}' is not a text file") from error
    if text.lstrip().startswith(("{", "[")):
        try:
            content = json.loads(text)
            lists = content.values() if isinstance(content, dict) else [content]
            if not all(isinstance(names, list) for names in lists):
                raise TypeError
            names = [PurePosixPath(name).name.removesuffix(".json") for names in lists for name in names]
        except (ValueError, TypeError) as error:
            raise UserError(f"{key}: '{path}' must be a list of ids, or counts with lists of record paths") from error
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    for name in names:
        if not ID_PATTERN.fullmatch(name):
            raise UserError(f"{key}: '{name[:80]}' in '{path}' is no id: letters, digits, - and _ are allowed")
    if not names:
        raise UserError(f"{key}: '{path}' lists no ids")
    return list(dict.fromkeys(names))


def choose(source: Source, fetch: Fetch, staging: Staging) -> Subset:
    """Draw the subset that ``fetch`` asks for, leaving what it needs in ``staging``.

    Candidates are taken in order, record first and the image only where it is wanted, until each count has
    ``per_count`` good bins. Which bins are taken does not depend on concurrency or interruptions.
    Raises UserError if nothing usable is found.
    """
    candidates = read_id_list(Path(fetch.ids)) if fetch.ids else _drawn(source.ids(), fetch.seed)
    limit = fetch.per_count or len(candidates)
    goal = min(limit * len(fetch.counts), len(candidates))
    records: dict[str, Record] = {}
    labels: dict[str, int] = {}
    counts: dict[str, int] = {}
    rejected: dict[str, str] = {}
    taken: Counter[int] = Counter()
    with progress("fetch", goal, "bins") as advance, ThreadPoolExecutor() as pool:
        for start in range(0, len(candidates), BATCH):
            if all(taken[count] >= limit for count in fetch.counts):
                break
            batch = candidates[start : start + BATCH]
            for _ in staging.fetch(source, map(record_key, batch)):
                advance(0)
            usable: list[str] = []
            for bin_id in batch:
                try:
                    records[bin_id] = record = _record(staging.get(record_key(bin_id)))
                except BadBin as fault:
                    rejected[bin_id] = str(fault)
                    continue
                labels[bin_id] = min(record.count, fetch.counts[-1]) if fetch.open_ended else record.count
                if labels[bin_id] in fetch.counts:
                    usable.append(bin_id)
            if not fetch.per_count:  # then all of them count as done
                advance(len(batch) - len(usable))
            # Again for as long as a bad image leaves room for the next bin of its count.
            while wanted := _first(usable, labels, {count: limit - taken[count] for count in fetch.counts}):
                checks: dict[str, Future[str | None]] = {}
                for key in staging.fetch(source, map(image_key, wanted)):
                    checks[key] = pool.submit(_image_fault, staging.get(key))
                    advance(1)
                for bin_id in wanted:
                    if reason := checks[image_key(bin_id)].result():
                        rejected[bin_id] = reason
                        if fetch.per_count:  # another takes its place
                            advance(-1)
                    else:
                        counts[bin_id] = labels[bin_id]
                        taken[labels[bin_id]] += 1
                usable = [bin_id for bin_id in usable if bin_id not in counts and bin_id not in rejected]
    if not counts:
        reasons = Counter(rejected.values()).most_common(1)
        why = f"most often: {reasons[0][0]}" if reasons else "none has one of the counts"
        raise UserError(
            f"none of {len(candidates)} bins of {fetch.source} with counts {fetch.counts} can be used; {why}"
        )
    for count in fetch.counts:
        if fetch.per_count and taken[count] < fetch.per_count:
            log.warning("count %d: %d bins, fewer than the %d asked for", count, taken[count], fetch.per_count)
        if not taken[count]:
            raise UserError(f"{fetch.source} has no usable bin with count {count}; take it out of fetch.counts")
    groups = group_bins({bin_id: record.asins for bin_id, record in records.items()})
    return Subset(counts, {bin_id: groups[bin_id] for bin_id in counts}, rejected)


def iter_bins(subset: Subset, staging: Staging) -> Iterator[Bin]:
    """The accepted bins in order of id, with their bytes."""
    with progress("write", len(subset.counts), "bins", brief=True) as advance:
        for bin_id in sorted(subset.counts):
            image, record = staging.get(image_key(bin_id)), staging.get(record_key(bin_id))
            assert image is not None and record is not None
            yield Bin(bin_id, subset.counts[bin_id], subset.groups[bin_id], image, record)
            advance(1)


def _drawn(ids: list[str], seed: int) -> list[str]:
    return [ids[place] for place in np.random.default_rng(seed).permutation(len(ids))]


def _first(ids: list[str], labels: dict[str, int], room: dict[int, int]) -> list[str]:
    """The first ids for which there is room."""
    chosen = []
    for bin_id in ids:
        if room[labels[bin_id]] > 0:
            room[labels[bin_id]] -= 1
            chosen.append(bin_id)
    return chosen


def _record(body: bytes | None) -> Record:
    if body is None:
        raise BadBin("record is missing")
    return parse_record(body)


def _image_fault(body: bytes | None) -> str | None:
    if body is None:
        return "image is missing"
    try:
        check_image(body)
    except BadBin as fault:
        return str(fault)
    return None
