"""The distribution over counts and the tables of evidence that a network gives."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from bintally.model.network import (
    CalibratedNetwork,
    CountingNetwork,
    EvidenceHead,
    FeatureDistance,
    Head,
    Heads,
    predict_views,
    predict_views_and_distances,
)
from bintally.model.views import horizontal_flip, stack_views
from small import backbone, images


def probabilities(network: Heads, inputs: torch.Tensor) -> torch.Tensor:
    return predict_views(network, inputs)[0].exp()


@pytest.fixture(scope="module")
def network() -> CountingNetwork:
    one = backbone("resnet18", "every_scale")
    head, evidence = Head(one.width, 16, 4, ordinal=False, seed=1), EvidenceHead(one.width, 16, 2, 4, seed=1)
    return CountingNetwork(one, head, evidence).eval()


@torch.no_grad()
def test_an_image_and_its_mirror_image_have_the_same_distribution(network: CountingNetwork) -> None:
    plain, mirrored = (probabilities(network, stack_views(one, True)) for one in (images(), horizontal_flip(images())))
    torch.testing.assert_close(plain, mirrored, atol=1e-5, rtol=0)
    # Without the average they differ.
    one, other = (probabilities(network, stack_views(some, False)) for some in (images(), horizontal_flip(images())))
    assert (one - other).abs().max() > 1e-4
    torch.testing.assert_close(plain, (one + other) / 2, atol=1e-5, rtol=0)


@torch.no_grad()
def test_probabilities_sum_to_one_even_for_extreme_logits(network: CountingNetwork) -> None:
    for inputs in (stack_views(images(), True), stack_views(images(), False)):
        found = probabilities(network, inputs)
        assert found.shape == (3, 4) and found.min() >= 0
        torch.testing.assert_close(found.sum(1), torch.ones(3))
    extreme = 1e4 * torch.randn(5, 2, network.backbone.width, generator=torch.Generator().manual_seed(0))
    logs, _ = predict_views(network.heads(), extreme)
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(5))
    assert logs.isfinite().all() and logs.min() < -1000


@torch.no_grad()
def test_the_heads_on_features_give_what_the_network_gives_on_images(network: CountingNetwork) -> None:
    both = stack_views(images(), True)
    features = network.backbone(both.flatten(0, 1)).unflatten(0, (3, 2))
    expected = predict_views(network, both)
    torch.testing.assert_close(predict_views(network.heads(), features), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_several_networks_predict_their_mean(network: CountingNetwork) -> None:
    views = stack_views(images(), True)
    others = [network]
    for seed in (2, 3):
        torch.manual_seed(seed)
        one = backbone("resnet18", "every_scale")
        head, evidence = Head(one.width, 16, 4, ordinal=True, seed=seed), EvidenceHead(one.width, 16, 2, 4, seed=seed)
        others.append(CountingNetwork(one, head, evidence).eval())
    found = [predict_views(other, views) for other in others]
    together = CountingNetwork.of(others)
    logs, tables = predict_views(together, views)
    torch.testing.assert_close(logs.exp(), torch.stack([logs.exp() for logs, _ in found]).mean(0))
    torch.testing.assert_close(tables, torch.stack([tables for _, tables in found]).mean(0))
    torch.testing.assert_close(together(images()), together.outputs(images())[0])
    alone = CountingNetwork.of([network])
    assert alone.state_dict().keys() == network.state_dict().keys()
    assert torch.equal(predict_views(alone, views)[0], found[0][0])


@torch.no_grad()
def test_the_heads_of_several_networks_are_those_of_all(network: CountingNetwork) -> None:
    width = network.backbone.width
    heads = Head(width, 16, 4, ordinal=False, seed=2), EvidenceHead(width, 16, 2, 4, seed=2)
    together = CountingNetwork.of([network, CountingNetwork(network.backbone, *heads)])
    both = stack_views(images(), True)
    features = network.backbone(both.flatten(0, 1)).unflatten(0, (3, 2))
    expected = predict_views(together, both)
    torch.testing.assert_close(predict_views(together.heads(), features), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected[0], predict_views(network, both)[0], atol=1e-3)


@torch.no_grad()
def test_the_table_of_an_image_is_the_mean_of_those_of_its_views(network: CountingNetwork) -> None:
    _, tables = predict_views(network, stack_views(images(), True))
    (_, one), (_, other) = (network.outputs(views) for views in (images(), horizontal_flip(images())))
    assert tables.shape == (3, 2, 4) and (one - other).abs().max() > 1e-3
    torch.testing.assert_close(tables, (one + other) / 2, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_network_without_a_head_for_them_gives_the_same_distribution_and_tables_without_features(
    network: CountingNetwork,
) -> None:
    older = CountingNetwork(network.backbone, network.head).eval()
    views = stack_views(images(), True)
    logs, tables = predict_views(older, views)
    assert tables.shape == (3, 0, 4) and torch.equal(logs, predict_views(network, views)[0])


@pytest.mark.parametrize("make", [partial(Head, 8, 4, 3, False), partial(EvidenceHead, 8, 4, 2, 3)])
def test_a_head_depends_on_its_seed_alone(make: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    untouched = torch.rand(1)
    torch.manual_seed(0)
    first = make(1)
    assert torch.equal(torch.rand(1), untouched)
    again, other = map(make, (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.get_parameter("0.weight"), other.get_parameter("0.weight"))


@torch.no_grad()
def test_an_ordinal_head_gives_the_product_of_continuation_ratios() -> None:
    head = Head(8, 6, 4, ordinal=True, seed=1)
    features = 9 * torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    first, second, third = nn.Sequential(*head)(features).double().sigmoid().unbind(1)
    expected = [1 - first, first * (1 - second), first * second * (1 - third), first * second * third]
    found = head(features).double().exp()
    assert found.std(0).min() > 0.01  # otherwise any agreement would be by chance
    torch.testing.assert_close(found, torch.stack(expected, 1), atol=1e-6, rtol=0)
    extreme = head(1e4 * features)
    assert extreme.isfinite().all() and extreme.min() < -1000
    torch.testing.assert_close(extreme.logsumexp(1), torch.zeros(5))


@torch.no_grad()
def test_calibrated_probabilities_are_of_the_given_classes_at_the_temperature(network: CountingNetwork) -> None:
    logs, tables = predict_views(network, stack_views(images(), True))
    torch.testing.assert_close(CalibratedNetwork(network, mirror=True)(images())[:2], (logs.exp(), tables))
    root = logs.exp()[:, [1, 3]].sqrt()
    chosen = CalibratedNetwork(network, mirror=True, classes=[1, 3], temperature=2.0)(images())
    torch.testing.assert_close(chosen[:2], (root / root.sum(1, keepdim=True), tables[..., [1, 3]]))


@torch.no_grad()
def test_distances_are_of_the_mean_of_an_images_views_in_units_of_their_spread(network: CountingNetwork) -> None:
    width, views = network.backbone.width, stack_views(images(), True)
    features = network.backbone(views.flatten(0, 1)).unflatten(0, (3, 2)).mean(1)
    assert predict_views_and_distances(network, views)[2].shape == (3, 0)
    distance = FeatureDistance(width, 2)
    distance.mean.copy_(features[0])
    distance.axes[4, 0] = distance.axes[5, 1] = 1
    distance.deviations.copy_(torch.tensor([0.5, 2]))
    measured = CountingNetwork(network.backbone, network.head, network.evidence, distance=distance).eval()
    expected = (((features - features[0])[:, 4:6] / torch.tensor([0.5, 2])) ** 2).mean(1, keepdim=True).sqrt()
    *outputs, distances = predict_views_and_distances(measured, views)
    torch.testing.assert_close(distances, expected)
    assert distances[0] == 0 and distances[1:].min() > 0.01
    torch.testing.assert_close(tuple(outputs), predict_views(network, views), atol=0, rtol=0)
    several = CountingNetwork.of([measured, network])
    torch.testing.assert_close(predict_views_and_distances(several, views)[2], distances)
    of_heads = predict_views_and_distances(several.heads(), network.backbone(views.flatten(0, 1)).unflatten(0, (3, 2)))
    torch.testing.assert_close(of_heads[2], distances)
