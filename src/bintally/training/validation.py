"""What a network says of samples it does not learn from."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from bintally.diagnosis.evidence import Learned
from bintally.model.card import default_device
from bintally.model.network import CountingNetwork, log_distribution, views
from bintally.progress import progress
from bintally.scoring.metrics import LabelledPredictions
from bintally.training.distributed import Place
from bintally.training.samples import Batch, Samples, validation_batches


def said(
    network: nn.Module, samples: Samples, place: Place, classes: int, bfloat16: bool = False
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """This rank's share of all samples, each batch with its log-probabilities, views averaged: (n, classes)."""
    for batch in validation_batches(samples, place):
        inputs = views(batch.inputs, samples.mirrored) if samples.kind == "pixels" else batch.inputs
        with torch.autocast(place.device.type, torch.bfloat16, enabled=bfloat16):
            logs = log_distribution(network, inputs, classes)
        yield batch, logs


@torch.inference_mode()
def answers(network: CountingNetwork, samples: Samples, counts: Sequence[int]) -> Learned:
    """What a network that has learned ``counts`` says of all ``samples``."""
    place = Place(0, 1, default_device(), is_main_process=True)
    model: nn.Module = network.head if samples.kind == "features" else network
    model.to(place.device).eval()
    alive: list[torch.Tensor] = []
    hook = network.head[1].register_forward_hook(lambda _module, _inputs, units: alive.append((units > 0).any(0)))
    logs = []
    with progress("validation", len(samples.rows), "images") as advance:
        for batch, of_batch in said(model, samples, place, len(counts)):
            logs.append(of_batch.cpu().double())
            advance(len(batch.targets))
    hook.remove()
    dead = 1 - float(torch.stack(alive).any(0).float().mean())
    truth = np.asarray(counts)[samples.classes]
    return Learned(LabelledPredictions(torch.cat(logs).softmax(1).numpy(), truth, samples.groups, counts), dead)
