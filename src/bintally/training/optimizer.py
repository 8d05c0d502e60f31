"""The optimizer, the parameters it updates, and the learning rate of each step."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from bintally.model.network import CountingNetwork
from bintally.params import Train

START, END = 1 / 25, 1 / 250_000  # of one_cycle, relative to the peak: the defaults of torch's OneCycleLR


def trainable_stages(network: CountingNetwork, trainable: str | int) -> list[list[nn.Parameter]]:
    """The parameters of the stages that `model.trainable` names, the heads' last. UserError if there are fewer."""
    heads = [*network.head.parameters(), *(network.evidence.parameters() if network.evidence else ())]
    return [*network.backbone.trainable_stages(trainable), heads]


def parameter_groups(parameters: Sequence[nn.Parameter], params: Train) -> list[dict[str, object]]:
    """Parameter groups with weight decay (matrices and kernels) and without (biases and normalisation layers)."""
    if not params.weight_decay:
        return [{"params": list(parameters), "weight_decay": 0.0}]
    decayed = [parameter for parameter in parameters if parameter.ndim > 1]
    rest = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": params.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict[str, object]], params: Train) -> torch.optim.Optimizer:
    """Create the optimizer of `train.optimizer`; settings that are no parameter are PyTorch's defaults."""
    if params.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=params.lr, momentum=params.momentum, fused=True)
    kind = torch.optim.Adam if params.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=params.lr, fused=True)


def rate(params: Train, step: int, steps: int) -> float:
    """The learning rate of a step, relative to the peak.

    ``constant`` and ``cosine`` rise linearly during the warm-up; then the one stays, the other falls to 0 along half a
    cosine (Loshchilov and Hutter 2017). ``one_cycle`` (Smith and Topin 2018) rises from 1/25 and falls to 1/250,000,
    both along half a cosine.

    Args:
        step: from 0.
        steps: number of steps of the whole training.
    """
    rising = params.warmup * steps
    if step < rising:
        if params.schedule == "one_cycle":
            return _between(START, 1, step / rising)
        return (step + 1) / (rising + 1)
    if params.schedule == "constant":
        return 1.0
    done = (step - rising) / max(1, steps - rising)
    return _between(1, END if params.schedule == "one_cycle" else 0, done)


def _between(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
