"""Photographs of one bin are found, and stay on one side of a split."""

from collections import Counter

import numpy as np

from bintally.bins.groups import group_bins, random_group_subset, split_groups, split_with_test_set

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def grouped(**asins: str) -> dict[str, str]:
    """Groups of bins named like n5, each letter of a value standing for a product."""
    return group_bins({name.lstrip("n"): frozenset(products) for name, products in asins.items()})


def test_bins_at_most_two_apart_that_share_a_product_are_one() -> None:
    assert grouped(n00010="AB", n00012="BC") == {"00010": "00010", "00012": "00010"}
    assert grouped(n10="AB", n11="BC") == {"10": "10", "11": "10"}


def test_bins_three_apart_or_without_a_common_product_are_two() -> None:
    assert len(set(grouped(n10="AB", n13="AB").values())) == 2
    assert len(set(grouped(n10="A", n11="B", n12="", n13="").values())) == 4


def test_links_carry_on_from_bin_to_bin() -> None:
    assert set(grouped(n10="A", n12="AB", n14="BC", n16="C").values()) == {"10"}
    # 11 lies between but shares nothing; 13 is joined to 10 over 12 alone.
    assert grouped(n13="B", n10="A", n12="AB", n11="X") == {"10": "10", "11": "11", "12": "10", "13": "10"}


def test_distance_ignores_leading_zeros_and_a_group_is_named_by_its_first_id() -> None:
    assert grouped(n777="A", n00777="A", n00779="A") == {"777": "00777", "00777": "00777", "00779": "00777"}
    assert len(set(grouped(n777="A", n00777="B").values())) == 2


def test_an_id_that_is_no_number_is_a_group_of_its_own() -> None:
    assert grouped(a1="A", a2="A") == {"a1": "a1", "a2": "a2"}


def synthetic() -> tuple[list[str], list[int]]:
    """Some 2,000 bins in groups of one to four, counts within a group one apart, as twins have them."""
    random = np.random.default_rng(0)
    groups: list[str] = []
    counts: list[int] = []
    while len(groups) < 2000:
        size, count = int(random.integers(1, 5)), int(random.integers(1, 6))
        groups += [f"g{len(groups):04d}"] * size
        counts += np.clip(count + random.integers(-1, 2, size), 1, 5).tolist()
    return groups, counts


def where(groups: list[str], splits: list[str]) -> dict[str, set[str]]:
    """The splits that each group's bins are in."""
    found: dict[str, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        found.setdefault(group, set()).add(split)
    return found


def assert_shared_out(splits: list[str], counts: list[int], shares: dict[str, float]) -> None:
    """All bins, and those of each count, to within a point."""
    for count in (None, 1, 2, 3, 4, 5):
        inside = [split for split, c in zip(splits, counts, strict=True) if split in shares and count in (None, c)]
        got = {name: number / len(inside) for name, number in Counter(inside).items()}
        assert {name: abs(got[name] - share) < 0.01 for name, share in shares.items()} == dict.fromkeys(shares, True), (
            count,
            got,
        )


def test_no_group_is_in_two_splits_and_every_count_is_shared_out_to_within_a_point() -> None:
    groups, counts = synthetic()
    splits = split_groups(groups, counts, SHARES, seed=1)
    assert {len(names) for names in where(groups, splits).values()} == {1}
    assert_shared_out(splits, counts, SHARES)


def test_around_a_given_test_set_no_bin_of_its_groups_is_learned_from_and_the_rest_is_shared_out() -> None:
    groups, counts = synthetic()
    held = (np.random.default_rng(1).random(len(groups)) < 0.1).tolist()
    splits = split_with_test_set(held, groups, counts, SHARES, seed=1)
    assert [split == "test" for split in splits] == held
    kinds = {frozenset(names) for names in where(groups, splits).values()}
    assert kinds == {frozenset(names.split()) for names in ("test", "test left_out", "train", "validation")}
    assert_shared_out(splits, counts, {"train": 0.75, "validation": 0.25})
    assert split_with_test_set(held, groups, counts, SHARES, seed=1) == splits
    assert split_with_test_set(held, groups, counts, SHARES, seed=2) != splits


def test_a_test_set_of_all_leaves_nothing_to_learn_from() -> None:
    groups, counts = synthetic()
    assert set(split_with_test_set([True] * len(groups), groups, counts, SHARES, seed=1)) == {"test"}


def test_a_seed_gives_one_split_and_another_seed_another() -> None:
    groups, counts = synthetic()
    first = split_groups(groups, counts, SHARES, seed=1)
    assert split_groups(groups, counts, SHARES, seed=1) == first
    assert split_groups(groups, counts, SHARES, seed=2) != first


def test_a_group_keeps_its_split_in_whatever_order_the_bins_come() -> None:
    groups, counts = synthetic()
    first = split_groups(groups, counts, SHARES, seed=1)
    back = split_groups(groups[::-1], counts[::-1], SHARES, seed=1)[::-1]
    assert back == first


def test_a_part_is_of_whole_groups_and_lies_within_larger_parts() -> None:
    groups = [f"g{number // 2}" for number in range(200)]
    parts = {share: random_group_subset(groups, share, seed=1) for share in (0.25, 0.5, 1.0)}
    assert {share: part.sum() for share, part in parts.items()} == {0.25: 50, 0.5: 100, 1.0: 200}
    assert not (parts[0.25] & ~parts[0.5]).any()
    assert all((part[0::2] == part[1::2]).all() for part in parts.values())
    assert (random_group_subset(groups, 0.5, seed=2) != parts[0.5]).any()
