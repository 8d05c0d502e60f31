"""Which parameters learn at which rate, and how the rate changes from step to step."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from bintally.errors import UserError
from bintally.model.network import CountingNetwork
from bintally.params import Train

START, END = 1 / 25, 1 / 250_000  # of one_cycle, as shares of the highest rate: the defaults of torch's OneCycleLR


def learned(network: CountingNetwork, trained: str | int) -> list[list[nn.Parameter]]:
    """The parameters `model.trainable` names, by stage, the head's last. Raises UserError if there are fewer."""
    stages = network.backbone.stages()
    last = {"head": 0, "all": len(stages)}.get(str(trained), trained)
    assert isinstance(last, int)
    if last > len(stages):
        raise UserError(f"model.trainable: {trained} is more than the {len(stages)} stages this backbone has; take all")
    return [*stages[len(stages) - last :], list(network.head.parameters())]


def parameter_groups(stages: Sequence[Sequence[nn.Parameter]], params: Train) -> list[dict[str, object]]:
    """Groups for an optimizer: each stage at its own rate, with weight decay and without.

    Args:
        stages: the parameters of each stage, the head's last. Those that do not learn are left out.

    A group's ``base_lr`` is the highest rate it comes to.
    """
    groups: list[dict[str, object]] = []
    for distance, stage in enumerate(reversed(stages)):
        rate = params.lr * params.layer_decay**distance
        learning = [parameter for parameter in stage if parameter.requires_grad]
        # Fewer groups, fewer calls a step: without decay there is nothing to keep apart.
        kinds = ((True,), (False,)) if params.weight_decay else ((True, False),)
        for kind in kinds:
            chosen = [parameter for parameter in learning if (parameter.ndim > 1) in kind]
            if chosen:
                decay = params.weight_decay if True in kind else 0.0
                groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": decay})
    return groups


def make_optimizer(groups: list[dict[str, object]], params: Train) -> torch.optim.Optimizer:
    """The optimizer `train.optimizer` names, with PyTorch's defaults beside what the parameters say."""
    if params.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=params.lr, momentum=params.momentum, fused=True)
    kind = torch.optim.Adam if params.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=params.lr, fused=True)


def rate(params: Train, step: int, steps: int) -> float:
    """The learning rate of a step as a share of the highest one.

    ``constant`` and ``cosine`` rise along a line during the warm-up; then the one stays, the other falls to nothing
    along half a cosine (Loshchilov and Hutter 2017). ``one_cycle`` (Smith and Topin 2018) rises from a 25th and falls
    to a 250,000th, both along half a cosine.

    Args:
        step: from 0.
        steps: of the whole training.
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


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * share
