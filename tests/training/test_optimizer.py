"""Learning rates by step, weight decay by parameter, and the optimizers."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from bintally.training.optimizer import make_optimizer, parameter_groups, rate, set_rate, trainable_stages
from training_helpers import make_params, tiny_network


def rates(steps: int, **train: Any) -> list[float]:
    params = make_params(**train).train
    return [rate(params, step, steps) for step in range(steps)]


def test_constant_rises_linearly_in_the_warm_up_and_stays() -> None:
    assert rates(4) == [1, 1, 1, 1]
    assert rates(10, warmup=0.3) == pytest.approx([0.25, 0.5, 0.75] + [1] * 7)
    # A warm-up that ends within a step: half a step is a third of the way to one and a half.
    assert rates(5, warmup=0.1) == pytest.approx([2 / 3, 1, 1, 1, 1])


def test_cosine_falls_along_half_a_cosine_after_the_warm_up() -> None:
    root = math.sqrt(0.5)
    assert rates(4, schedule="cosine") == pytest.approx([1, (1 + root) / 2, 0.5, (1 - root) / 2])
    warmed = rates(6, schedule="cosine", warmup=1 / 3)
    assert warmed == pytest.approx([1 / 3, 2 / 3, 1, (1 + root) / 2, 0.5, (1 - root) / 2])


def one_cycle_of_torch(steps: int, rising: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, pct_start=rising, cycle_momentum=False
    )
    result = []
    for _ in range(steps):
        result.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return result


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.3), (40, 0.25), (7, 0.5)])
def test_one_cycle_is_torchs(steps: int, warmup: float) -> None:
    ours = rates(steps, schedule="one_cycle", warmup=warmup)
    # torch counts from the first step to the last, so that its last step is at the very end and its highest one a step
    # early. Ours is its schedule of one step more, the last left out.
    theirs = one_cycle_of_torch(steps + 1, (warmup * steps + 1) / (steps + 1))
    assert ours == pytest.approx(theirs[:-1], abs=1e-12)
    assert theirs[0] == pytest.approx(1 / 25) and theirs[-1] == pytest.approx(1 / 250_000)


def test_one_cycle_is_within_a_step_of_torchs_of_the_same_share() -> None:
    ours, theirs = rates(200, schedule="one_cycle", warmup=0.3), one_cycle_of_torch(200, 0.3)
    steepest = max(abs(one - other) for one, other in pairwise(theirs))
    assert max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) <= steepest


def test_only_matrices_and_kernels_decay() -> None:
    network, params = tiny_network(), make_params(weight_decay=0.02).train
    optimizer = make_optimizer(parameter_groups(list(network.parameters()), params), params)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in network.named_parameters()} == {
        "backbone.lower.0.weight": 0.02,
        "backbone.lower.1.weight": 0.0,
        "backbone.lower.1.bias": 0.0,
        "backbone.upper.0.weight": 0.02,
        "backbone.upper.1.weight": 0.0,
        "backbone.upper.1.bias": 0.0,
        "head.0.weight": 0.02,
        "head.0.bias": 0.0,
        "head.2.weight": 0.02,
        "head.2.bias": 0.0,
        "evidence.0.weight": 0.02,
        "evidence.0.bias": 0.0,
        "evidence.2.weight": 0.02,
        "evidence.2.bias": 0.0,
    }
    assert len(parameter_groups(list(network.parameters()), make_params().train)) == 1


@pytest.mark.parametrize(("trainable", "number"), [("head", 1), (1, 2), (2, 3), ("all", 3)])
def test_the_trainable_stages_are_the_last_ones_and_the_heads(trainable: str | int, number: int) -> None:
    network = tiny_network()
    stages = [*network.backbone.trainable_stages("all"), list(network.heads().parameters())]
    found = trainable_stages(network, trainable)
    assert [list(map(id, stage)) for stage in found] == [list(map(id, stage)) for stage in stages[-number:]]


def test_the_rate_is_set_in_every_group() -> None:
    params = make_params(lr=0.1, weight_decay=0.1).train
    optimizer = make_optimizer(parameter_groups(list(tiny_network().parameters()), params), params)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
    set_rate(optimizer, 0.05)
    assert {group["lr"] for group in optimizer.param_groups} == {0.05} and len(optimizer.param_groups) == 2


def stepped(**train: Any) -> list[float]:
    """A weight of 1 after each of two steps with a gradient of 0.5, at a rate of 0.1."""
    params = make_params(lr=0.1, **train).train
    weight = nn.Parameter(torch.ones(1, 1))
    optimizer = make_optimizer(parameter_groups([weight], params), params)
    result = []
    for _ in range(2):
        weight.grad = torch.full((1, 1), 0.5)
        optimizer.step()
        result.append(weight.item())
    return result


def test_each_optimizer_steps_as_it_is_defined() -> None:
    assert stepped(optimizer="sgd", momentum=0.0) == pytest.approx([0.95, 0.9])
    assert stepped(optimizer="sgd", momentum=0.8) == pytest.approx([0.95, 0.95 - 0.1 * (0.8 * 0.5 + 0.5)])
    assert stepped(optimizer="sgd", momentum=0.0, weight_decay=0.2)[0] == pytest.approx(1 - 0.1 * (0.5 + 0.2))
    # Adam's step is the rate, whatever the size of a gradient that stays the same; AdamW decays beside it.
    assert stepped(optimizer="adam") == pytest.approx([0.9, 0.8])
    assert stepped(optimizer="adam", weight_decay=0.2)[0] == pytest.approx(0.9)
    assert stepped(optimizer="adamw", weight_decay=0.2)[0] == pytest.approx(1 - 0.1 * 0.2 - 0.1)
