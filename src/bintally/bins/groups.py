"""Which photographs show the same bin, and how groups of them are split."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

MAX_ID_DISTANCE = 2


def group_bins(asins: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Map each id to its group, named by the group's smallest id.

    Two bins are linked where their ids are at most 2 apart and they share an ASIN; a group is everything
    reachable over links. The distance ignores leading zeros, so 00777 and 777 are linked if they share an
    ASIN though they are different photographs. An id that is no number is a group of its own.
    """
    parent = {bin_id: bin_id for bin_id in asins}

    def root(bin_id: str) -> str:
        while parent[bin_id] != bin_id:
            parent[bin_id] = bin_id = parent[parent[bin_id]]
        return bin_id

    by_number: dict[int, list[str]] = {}
    for bin_id in sorted(asins):
        if bin_id.isdecimal():
            by_number.setdefault(int(bin_id), []).append(bin_id)
    for number, here in by_number.items():
        for distance in range(MAX_ID_DISTANCE + 1):
            for one in here:
                for other in by_number.get(number + distance, []):
                    if asins[one] & asins[other]:
                        first, second = sorted((root(one), root(other)))
                        parent[second] = first
    return {bin_id: root(bin_id) for bin_id in asins}


def split_groups(groups: Sequence[str], counts: Sequence[int], shares: Mapping[str, float], seed: int) -> list[str]:
    """Give every bin a split so that no group is in two and each count is shared out as asked.

    Groups go, largest first and otherwise in random order, to the split that lacks most of what they hold.

    Args:
        groups: the group of each bin.
        counts: the count of each bin.
        shares: the share of each split, summing to 1.

    Returns:
        The name of each bin's split.
    """
    names = list(shares)
    classes = {count: column for column, count in enumerate(sorted(set(counts)))}
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    total = np.bincount([classes[count] for count in counts], minlength=len(classes))
    target = np.outer(list(shares.values()), total)
    held = np.zeros_like(target)

    order = sorted(members)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda group: -len(members[group]))
    result = [""] * len(groups)
    for group in order:
        contents = np.bincount([classes[counts[row]] for row in members[group]], minlength=len(classes))
        lacking = ((target - held) / target) @ contents
        choice = int(np.argmax(lacking))
        held[choice] += contents
        for row in members[group]:
            result[row] = names[choice]
    return result


def random_group_subset(groups: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Of each bin, whether it is in a random part of so many of the groups; smaller parts lie within larger ones."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(names))
    return np.asarray(rank[member] < round(share * len(names)))


def split_with_test_set(
    held: Sequence[bool], groups: Sequence[str], counts: Sequence[int], shares: Mapping[str, float], seed: int
) -> list[str]:
    """As :func:`split_groups`, where the bins of the split ``test`` are given.

    What else is of their groups is ``left_out``; the rest goes to the other splits, their shares as they are to
    each other.

    Args:
        held: of each bin, whether it is of ``test``.
    """
    taken = {group for group, is_held in zip(groups, held, strict=True) if is_held}
    rest = [row for row, group in enumerate(groups) if group not in taken]
    others = {name: share / (1 - shares["test"]) for name, share in shares.items() if name != "test"}
    splits = iter(split_groups([groups[row] for row in rest], [counts[row] for row in rest], others, seed))
    return [
        "test" if is_held else "left_out" if group in taken else next(splits)
        for group, is_held in zip(groups, held, strict=True)
    ]
