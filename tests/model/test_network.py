"""From images to a distribution over counts, and from a distribution to one count."""

import numpy as np
import pytest
import torch

from bintally.model.decoding import decode_counts
from bintally.model.network import CountingNetwork, distribution, make_head, mirror, views
from bintally.model.trunk import Trunk

SIZE = 64


def images(number: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def network() -> CountingNetwork:
    torch.manual_seed(1)
    trunk = Trunk("resnet18", SIZE, every_scale=True)
    return CountingNetwork(trunk, make_head(trunk.width, 16, 4, seed=1)).eval()


@torch.no_grad()
def test_a_mirrored_photograph_has_the_same_distribution(network: CountingNetwork) -> None:
    plain, mirrored = (distribution(network, views(one, True)) for one in (images(), mirror(images())))
    torch.testing.assert_close(plain, mirrored, atol=1e-5, rtol=0)
    # Without the average it has not.
    one, other = (distribution(network, views(some, False)) for some in (images(), mirror(images())))
    assert (one - other).abs().max() > 1e-4
    torch.testing.assert_close(plain, (one + other) / 2, atol=1e-5, rtol=0)


@torch.no_grad()
def test_rows_of_a_distribution_sum_to_one_even_for_extreme_logits(network: CountingNetwork) -> None:
    for inputs in (views(images(), True), views(images(), False)):
        probability = distribution(network, inputs)
        assert probability.shape == (3, 4) and probability.min() >= 0
        torch.testing.assert_close(probability.sum(1), torch.ones(3))
    extreme = 1e4 * torch.randn(5, 2, network.trunk.width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(distribution(network.head, extreme).sum(1), torch.ones(5))


@torch.no_grad()
def test_the_head_on_features_of_the_views_says_what_the_whole_network_says(network: CountingNetwork) -> None:
    both = views(images(), True)
    features = network.trunk(both.flatten(0, 1)).unflatten(0, (3, 2))
    torch.testing.assert_close(distribution(network.head, features), distribution(network, both), atol=1e-5, rtol=0)


def test_a_head_is_made_from_its_seed_and_nothing_else() -> None:
    torch.manual_seed(0)
    untouched = torch.rand(1)
    torch.manual_seed(0)
    first = make_head(8, 4, 3, seed=1)
    assert torch.equal(torch.rand(1), untouched)
    again, other = make_head(8, 4, 3, seed=1), make_head(8, 4, 3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first[0].weight, other[0].weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("probabilities", "most_probable", "rounded_mean"),
    [
        ([1.0, 0.0, 0.0, 0.0], 0, 0),
        ([0.0, 0.0, 0.0, 1.0], 5, 5),
        ([0.4, 0.0, 0.3, 0.3], 0, 2),  # mean 2.1
        ([0.0, 0.4, 0.35, 0.25], 1, 2),  # mean 2.35
        ([0.3, 0.1, 0.1, 0.5], 5, 2),  # mean 2.8: between the classes, nearer to 2
        ([0.25, 0.25, 0.25, 0.25], 0, 2),  # mean 2: the first of equals
    ],
)
def test_the_decoding_rules(probabilities: list[float], most_probable: int, rounded_mean: int) -> None:
    row = np.array([probabilities])
    for rule, expected in (("most_probable", most_probable), ("rounded_mean", rounded_mean)):
        decoded = decode_counts(row, [0, 1, 2, 5], rule)
        assert decoded.dtype == np.int64
        assert decoded.tolist() == [expected]


def test_an_unknown_decoding_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="'median'"):
        decode_counts(np.array([[1.0]]), [0], "median")
