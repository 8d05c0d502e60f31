"""Groups of photographs of the same bin, and splits that keep each group together."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

MAX_ID_DISTANCE = 2


def group_bins(asins: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Map each id to its group, which is named by its smallest id.

    Two photographs are linked if their ids are at most 2 apart and they share an ASIN; a group is a connected
    component of these links. The distance ignores leading zeros, so 00777 and 777 are linked if they share an ASIN
    although they are different photographs. An id that is not a number is a group of its own.

    Args:
        asins: the ASINs in each bin, by id.
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
    for number, ids in by_number.items():
        for distance in range(MAX_ID_DISTANCE + 1):
            for bin_id in ids:
                for neighbour in by_number.get(number + distance, []):
                    if asins[bin_id] & asins[neighbour]:
                        first, second = sorted((root(bin_id), root(neighbour)))
                        parent[second] = first
    return {bin_id: root(bin_id) for bin_id in asins}


def split_groups(groups: Sequence[str], counts: Sequence[int], shares: Mapping[str, float], seed: int) -> list[str]:
    """Split bins by group, stratified by count.

    Greedy: groups are taken largest first, in random order among equals, and each goes to the split that lacks the
    most of the counts in it.

    Args:
        groups: the group of each bin.
        counts: the count of each bin.
        shares: the fraction of the bins in each split, summing to 1.

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
    assigned = np.zeros_like(target)

    order = sorted(members)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda group: -len(members[group]))
    result = [""] * len(groups)
    for group in order:
        contents = np.bincount([classes[counts[row]] for row in members[group]], minlength=len(classes))
        lacking = ((target - assigned) / target) @ contents
        choice = int(np.argmax(lacking))
        assigned[choice] += contents
        for row in members[group]:
            result[row] = names[choice]
    return result


def split_with_test_set(
    is_test: Sequence[bool], groups: Sequence[str], counts: Sequence[int], shares: Mapping[str, float], seed: int
) -> list[str]:
    """Split bins as :func:`split_groups` does, around a given test set.

    Other bins of the groups in the test set are ``left_out``. The remaining bins are divided between the other
    splits in proportion to their shares.

    Args:
        is_test: whether each bin is in the test set.
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
