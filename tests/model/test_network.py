"""From images to a distribution over counts, and from a distribution to one count."""

import numpy as np
import pytest
import torch
from torch import nn

from bintally.model.backbone import Backbone
from bintally.model.network import CountDistribution, CountingNetwork, Head, log_distribution, mirror, views
from bintally.scoring.decoding import DECODINGS, decode_counts

SIZE = 64


def images(number: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def distribution(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return log_distribution(network, inputs).exp()


@pytest.fixture(scope="module")
def network() -> CountingNetwork:
    torch.manual_seed(1)
    backbone = Backbone("resnet18", SIZE, "every_scale")
    return CountingNetwork(backbone, Head(backbone.width, 16, 4, ordinal=False, seed=1)).eval()


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
    extreme = 1e4 * torch.randn(5, 2, network.backbone.width, generator=torch.Generator().manual_seed(0))
    logs = log_distribution(network.head, extreme)
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(5))
    assert logs.isfinite().all() and logs.min() < -1000


@torch.no_grad()
def test_the_head_on_features_of_the_views_says_what_the_whole_network_says(network: CountingNetwork) -> None:
    both = views(images(), True)
    features = network.backbone(both.flatten(0, 1)).unflatten(0, (3, 2))
    torch.testing.assert_close(distribution(network.head, features), distribution(network, both), atol=1e-5, rtol=0)


def test_a_head_is_made_from_its_seed_and_nothing_else() -> None:
    torch.manual_seed(0)
    untouched = torch.rand(1)
    torch.manual_seed(0)
    first = Head(8, 4, 3, ordinal=False, seed=1)
    assert torch.equal(torch.rand(1), untouched)
    again, other = (Head(8, 4, 3, ordinal=False, seed=seed) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.get_parameter("0.weight"), other.get_parameter("0.weight"))


@torch.no_grad()
def test_an_ordinal_head_goes_on_from_class_to_class() -> None:
    head = Head(8, 6, 4, ordinal=True, seed=1)
    features = 9 * torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    first, second, third = nn.Sequential(*head)(features).double().sigmoid().unbind(1)
    expected = [1 - first, first * (1 - second), first * second * (1 - third), first * second * third]
    probabilities = head(features).double().exp()
    assert probabilities.std(0).min() > 0.01  # so that agreement says something
    torch.testing.assert_close(probabilities, torch.stack(expected, 1), atol=1e-6, rtol=0)
    extreme = head(1e4 * features)
    assert extreme.isfinite().all() and extreme.min() < -1000
    torch.testing.assert_close(extreme.logsumexp(1), torch.zeros(5))


@torch.no_grad()
@pytest.mark.parametrize("ordinal", [False, True])
def test_a_head_sees_of_each_feature_the_share_that_is_kept(ordinal: bool) -> None:
    head = Head(4, 6, 3, ordinal, seed=1)
    features = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([[0.0, 1, 2, 0.5], [1, 0, 0, 2]])
    assert torch.equal(head(features, kept), head(features * kept))
    assert not torch.equal(head(features, kept), head(features))


@torch.no_grad()
def test_what_predicts_answers_with_the_chosen_classes_at_its_temperature(network: CountingNetwork) -> None:
    plain = distribution(network, views(images(), True))
    torch.testing.assert_close(CountDistribution(network, mirrored=True)(images()), plain)
    root = plain[:, [1, 3]].sqrt()
    chosen = CountDistribution(network, mirrored=True, chosen=[1, 3], temperature=2.0)(images())
    torch.testing.assert_close(chosen, root / root.sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("probabilities", "most_probable", "rounded_mean", "median"),
    [
        ([1.0, 0.0, 0.0, 0.0], 0, 0, 0),
        ([0.0, 0.0, 0.0, 1.0], 5, 5, 5),
        ([0.4, 0.0, 0.3, 0.3], 0, 2, 2),  # mean 2.1
        ([0.0, 0.4, 0.35, 0.25], 1, 2, 2),  # mean 2.35
        ([0.3, 0.1, 0.1, 0.5], 5, 2, 2),  # mean 2.8: between the classes, nearer to 2; half is at most 2
        ([0.25, 0.25, 0.25, 0.25], 0, 2, 1),  # mean 2: the first of equals
        ([0.7, 0.1, 0.1, 0.1], 0, 1, 0),  # mean 0.8
    ],
)
def test_the_decoding_rules(probabilities: list[float], most_probable: int, rounded_mean: int, median: int) -> None:
    row = np.array([probabilities])
    for rule, expected in zip(DECODINGS, (most_probable, rounded_mean, median), strict=True):
        decoded = decode_counts(row, [0, 1, 2, 5], rule)
        assert decoded.dtype == np.int64
        assert decoded.tolist() == [expected]


def test_an_unknown_decoding_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="'mode'"):
        decode_counts(np.array([[1.0]]), [0], "mode")
