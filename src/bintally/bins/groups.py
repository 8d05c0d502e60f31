"""Groups of photographs of the same bin, and splits that keep each group together."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

MAX_ID_DISTANCE = 2


def group_bins(asins: Mapping[str, Collection[str]], bins: Mapping[str, str] | None = None) -> dict[str, str]:
    """Map each id to its group, which is named by its smallest id.

    Photographs of which ``bins`` says the bin are one group for each bin. Two others are linked if their ids are at
    most 2 apart and they share an ASIN; a group is a connected component of these links. The distance ignores leading
    zeros, so 00777 and 777 are linked if they share an ASIN although they are different photographs. An id that is not
    a number is a group of its own.
    """
    parent = {bin_id: bin_id for bin_id in asins}

    def root(bin_id: str) -> str:
        while parent[bin_id] != bin_id:
            parent[bin_id] = bin_id = parent[parent[bin_id]]
        return bin_id

    numbered: list[tuple[int, str]] = []
    first_of: dict[str, str] = {}  # the first photograph of each known bin
    for bin_id in sorted(asins):
        if bins and bin_id in bins:
            parent[bin_id] = first_of.setdefault(bins[bin_id], bin_id)
        elif bin_id.isdecimal():
            numbered.append((int(bin_id), bin_id))
    before: deque[tuple[int, str]] = deque()  # those of the last numbers
    for number, bin_id in sorted(numbered):
        while before and number - before[0][0] > MAX_ID_DISTANCE:
            before.popleft()
        for _, neighbour in before:
            if not frozenset(asins[bin_id]).isdisjoint(asins[neighbour]):
                first, second = sorted((root(bin_id), root(neighbour)))
                parent[second] = first
        before.append((number, bin_id))
    return {bin_id: root(bin_id) for bin_id in asins}


def in_another_split(splits: Sequence[str], near_duplicate_of: Sequence[int | None]) -> list[int]:
    """The rows of photographs that leak, as they are near-duplicates of one in another split; left out is in none.

    Args:
        near_duplicate_of: for each photograph, the row of the one that it is a near-duplicate of.
    """
    pairs = ((row, first) for row, first in enumerate(near_duplicate_of) if first is not None)
    return [row for row, first in pairs if len({splits[row], splits[first]} - {"left_out"}) > 1]


def split_groups(groups: Sequence[str], counts: Sequence[int], shares: Mapping[str, float], seed: int) -> list[str]:
    """Split bins by group, stratified by count; return the name of each bin's split.

    Greedy: groups are taken largest first, in random order among equals, and each goes to the split that lacks the
    most of the counts in it.

    Args:
        shares: the fraction of the bins in each split, summing to 1.
    """
    names = list(shares)
    distinct, classes = np.unique(np.asarray(counts), return_inverse=True)
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    target = np.outer(list(shares.values()), np.bincount(classes))
    assigned = np.zeros_like(target)

    order = sorted(members)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda group: -len(members[group]))
    split_of: dict[str, str] = {}
    for group in order:
        contents = np.bincount(classes[members[group]], minlength=len(distinct))
        choice = int(np.argmax(((target - assigned) / target) @ contents))
        assigned[choice] += contents
        split_of[group] = names[choice]
    return [split_of[group] for group in groups]


def split_with_test_set(
    is_test: Sequence[bool], groups: Sequence[str], counts: Sequence[int], shares: Mapping[str, float], seed: int
) -> list[str]:
    """Split bins as :func:`split_groups` does, around a given test set.

    Other bins of the groups in the test set are ``left_out``. The remaining bins are divided between the other
    splits in proportion to their shares.
    """
    test_groups = {group for group, in_test in zip(groups, is_test, strict=True) if in_test}
    rest = [row for row, group in enumerate(groups) if group not in test_groups]
    rest_shares = {name: share / (1 - shares["test"]) for name, share in shares.items() if name != "test"}
    splits = iter(split_groups([groups[row] for row in rest], [counts[row] for row in rest], rest_shares, seed))
    return [
        "test" if in_test else "left_out" if group in test_groups else next(splits)
        for group, in_test in zip(groups, is_test, strict=True)
    ]


def random_group_subset(groups: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Return a mask of the bins in a random subset of the groups; a smaller subset is part of every larger one."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(names))
    return np.asarray(rank[member] < round(share * len(names)))
