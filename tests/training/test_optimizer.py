"""Rates of learning: by stage, by kind of parameter, by step."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from toys import parameters, tiny_network

from bintally.params import Train
from bintally.training.optimizer import make_optimizer, parameter_groups, rate, set_rate


def shares(steps: int, **train: Any) -> list[float]:
    params = parameters(**train).train
    return [rate(params, step, steps) for step in range(steps)]


def test_constant_rises_along_a_line_in_the_warm_up_and_stays() -> None:
    assert shares(4) == [1, 1, 1, 1]
    assert shares(10, warmup=0.3) == pytest.approx([0.25, 0.5, 0.75] + [1] * 7)
    # A warm-up that ends within a step: half a step is a third of the way to one and a half.
    assert shares(5, warmup=0.1) == pytest.approx([2 / 3, 1, 1, 1, 1])


def test_cosine_falls_along_half_a_cosine_after_the_warm_up() -> None:
    root = math.sqrt(0.5)
    assert shares(4, schedule="cosine") == pytest.approx([1, (1 + root) / 2, 0.5, (1 - root) / 2])
    warmed = shares(6, schedule="cosine", warmup=1 / 3)
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
    ours = shares(steps, schedule="one_cycle", warmup=warmup)
    # torch counts from the first step to the last, so that its last step is at the very end and its highest one a step
    # early. Ours is its schedule of one step more, the last left out.
    theirs = one_cycle_of_torch(steps + 1, (warmup * steps + 1) / (steps + 1))
    assert ours == pytest.approx(theirs[:-1], abs=1e-12)
    assert theirs[0] == pytest.approx(1 / 25) and theirs[-1] == pytest.approx(1 / 250_000)


def test_one_cycle_is_within_a_step_of_torchs_of_the_same_share() -> None:
    ours, theirs = shares(200, schedule="one_cycle", warmup=0.3), one_cycle_of_torch(200, 0.3)
    steepest = max(abs(one - other) for one, other in pairwise(theirs))
    assert max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) <= steepest


def grouped(params: Train) -> tuple[nn.Module, dict[str, tuple[float, float]]]:
    """A network whose lowest convolution does not learn, and the rate and decay of each parameter by name."""
    network = tiny_network()
    network.backbone.get_parameter("lower.0.weight").requires_grad_(False)
    groups = parameter_groups([*network.backbone.stages(), list(network.head.parameters())], params)
    optimizer = make_optimizer(groups, params)
    of = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(of) == sum(len(g["params"]) for g in optimizer.param_groups)
    return network, {name: of[id(p)] for name, p in network.named_parameters() if id(p) in of}


def test_each_stage_has_its_own_rate_and_only_matrices_and_kernels_decay() -> None:
    network, groups = grouped(parameters(lr=0.1, layer_decay=0.5, weight_decay=0.02).train)
    assert groups == {
        "backbone.lower.1.weight": (0.025, 0.0),
        "backbone.lower.1.bias": (0.025, 0.0),
        "backbone.upper.0.weight": (0.05, 0.02),
        "backbone.upper.1.weight": (0.05, 0.0),
        "backbone.upper.1.bias": (0.05, 0.0),
        "head.0.weight": (0.1, 0.02),
        "head.0.bias": (0.1, 0.0),
        "head.2.weight": (0.1, 0.02),
        "head.2.bias": (0.1, 0.0),
    }
    assert len(groups) == len(list(network.parameters())) - 1


def test_a_rate_is_set_as_a_share_of_each_groups_own() -> None:
    params = parameters(lr=0.1, layer_decay=0.5).train
    network = tiny_network()
    optimizer = make_optimizer(
        parameter_groups([*network.backbone.stages(), list(network.head.parameters())], params), params
    )
    for share in (0.5, 0.1):
        set_rate(optimizer, share)
        got = {round(group["lr"], 9) for group in optimizer.param_groups}
        assert got == {round(share * highest, 9) for highest in (0.1, 0.05, 0.025)}


def stepped(**train: Any) -> list[float]:
    """A weight of 1 after each of two steps along a gradient of 0.5, at a rate of 0.1."""
    params = parameters(lr=0.1, **train).train
    weight = nn.Parameter(torch.ones(1, 1))
    optimizer = make_optimizer(parameter_groups([[weight]], params), params)
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
