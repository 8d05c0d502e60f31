"""Photographs of the same bin form a group, and a split keeps each group together."""

from collections import Counter

import numpy as np

from bintally.bins.groups import group_bins, random_group_subset, split_groups, split_with_test_set

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def grouped(**asins: str) -> dict[str, str]:
    """The groups of bins named like n5, each letter of a value being a product."""
    return group_bins({name.lstrip("n"): frozenset(products) for name, products in asins.items()})


def test_photographs_at_most_two_apart_that_share_a_product_are_a_group() -> None:
    assert grouped(n00010="AB", n00012="BC") == {"00010": "00010", "00012": "00010"}
    assert grouped(n10="AB", n11="BC") == {"10": "10", "11": "10"}


def test_photographs_three_apart_or_without_a_common_product_are_not() -> None:
    assert len(set(grouped(n10="AB", n13="AB").values())) == 2
    assert len(set(grouped(n10="A", n11="B", n12="", n13="").values())) == 4


def test_links_are_transitive() -> None:
    assert set(grouped(n10="A", n12="AB", n14="BC", n16="C").values()) == {"10"}
    # 11 is between them but shares nothing; 13 is linked to 10 through 12.
    assert grouped(n13="B", n10="A", n12="AB", n11="X") == {"10": "10", "11": "11", "12": "10", "13": "10"}


def test_the_distance_ignores_leading_zeros_and_a_group_is_named_by_its_first_id() -> None:
    assert grouped(n777="A", n00777="A", n00779="A") == {"777": "00777", "00777": "00777", "00779": "00777"}
    assert len(set(grouped(n777="A", n00777="B").values())) == 2


def test_an_id_that_is_not_a_number_is_a_group_of_its_own() -> None:
    assert grouped(a1="A", a2="A") == {"a1": "a1", "a2": "a2"}


def make_groups() -> tuple[list[str], list[int]]:
    """Some 2,000 bins in groups of one to four; counts within a group are close, as for photographs of the same bin."""
    random = np.random.default_rng(0)
    groups: list[str] = []
    counts: list[int] = []
    while len(groups) < 2000:
        size, count = int(random.integers(1, 5)), int(random.integers(1, 6))
        groups += [f"g{len(groups):04d}"] * size
        counts += np.clip(count + random.integers(-1, 2, size), 1, 5).tolist()
    return groups, counts


def splits_by_group(groups: list[str], splits: list[str]) -> dict[str, set[str]]:
    """The splits of each group's bins."""
    found: dict[str, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        found.setdefault(group, set()).add(split)
    return found


def assert_shares(splits: list[str], counts: list[int], shares: dict[str, float]) -> None:
    """Check the shares of all bins, and of those of each count, to within a percentage point."""
    for count in (None, 1, 2, 3, 4, 5):
        inside = [split for split, c in zip(splits, counts, strict=True) if split in shares and count in (None, c)]
        got = {name: number / len(inside) for name, number in Counter(inside).items()}
        assert {name: abs(got[name] - share) < 0.01 for name, share in shares.items()} == dict.fromkeys(shares, True), (
            count,
            got,
        )


def test_no_group_is_in_two_splits_and_the_split_is_stratified_by_count() -> None:
    groups, counts = make_groups()
    splits = split_groups(groups, counts, SHARES, seed=1)
    assert {len(names) for names in splits_by_group(groups, splits).values()} == {1}
    assert_shares(splits, counts, SHARES)


def test_groups_of_a_given_test_set_are_left_out_and_the_rest_is_split() -> None:
    groups, counts = make_groups()
    is_test = (np.random.default_rng(1).random(len(groups)) < 0.1).tolist()
    splits = split_with_test_set(is_test, groups, counts, SHARES, seed=1)
    assert [split == "test" for split in splits] == is_test
    kinds = {frozenset(names) for names in splits_by_group(groups, splits).values()}
    assert kinds == {frozenset(names.split()) for names in ("test", "test left_out", "train", "validation")}
    assert_shares(splits, counts, {"train": 0.75, "validation": 0.25})
    assert split_with_test_set(is_test, groups, counts, SHARES, seed=1) == splits
    assert split_with_test_set(is_test, groups, counts, SHARES, seed=2) != splits


def test_a_test_set_of_all_bins_leaves_nothing_to_train_on() -> None:
    groups, counts = make_groups()
    assert set(split_with_test_set([True] * len(groups), groups, counts, SHARES, seed=1)) == {"test"}


def test_the_split_depends_on_the_seed_alone() -> None:
    groups, counts = make_groups()
    first = split_groups(groups, counts, SHARES, seed=1)
    assert split_groups(groups, counts, SHARES, seed=1) == first
    assert split_groups(groups, counts, SHARES, seed=2) != first


def test_the_split_does_not_depend_on_the_order_of_the_bins() -> None:
    groups, counts = make_groups()
    first = split_groups(groups, counts, SHARES, seed=1)
    back = split_groups(groups[::-1], counts[::-1], SHARES, seed=1)[::-1]
    assert back == first


def test_a_subset_has_whole_groups_and_is_part_of_larger_ones() -> None:
    groups = [f"g{number // 2}" for number in range(200)]
    parts = {share: random_group_subset(groups, share, seed=1) for share in (0.25, 0.5, 1.0)}
    assert {share: part.sum() for share, part in parts.items()} == {0.25: 50, 0.5: 100, 1.0: 200}
    assert not (parts[0.25] & ~parts[0.5]).any()
    assert all((part[0::2] == part[1::2]).all() for part in parts.values())
    assert (random_group_subset(groups, 0.5, seed=2) != parts[0.5]).any()
