"""The outputs of a trained network for the validation bins."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from bintally.diagnosis.evidence import ValidationOutputs
from bintally.model.network import CountingNetwork
from bintally.progress import progress
from bintally.resources import default_device
from bintally.scoring.metrics import LabelledPredictions
from bintally.training.distributed import RankContext
from bintally.training.samples import Samples
from bintally.training.validation import predict_batches


@torch.inference_mode()
def validation_outputs(network: CountingNetwork, samples: Samples, counts: Sequence[int]) -> ValidationOutputs:
    """Run the network on all samples.

    Args:
        counts: the count of each class.
    """
    context = RankContext(0, 1, default_device(), is_main=True)
    model: nn.Module = network.head if samples.kind == "features" else network
    model.to(context.device).eval()
    alive: list[torch.Tensor] = []
    hook = network.head[1].register_forward_hook(lambda _module, _inputs, units: alive.append((units > 0).any(0)))
    log_probabilities = []
    with progress("validation", len(samples.rows), "images") as advance:
        for batch, batch_log_probabilities in predict_batches(model, samples, context):
            log_probabilities.append(batch_log_probabilities.cpu().double())
            advance(len(batch.targets))
    hook.remove()
    dead_units = 1 - float(torch.stack(alive).any(0).float().mean())
    probabilities = torch.cat(log_probabilities).softmax(1).numpy()
    truth = np.asarray(counts)[samples.classes]
    return ValidationOutputs(LabelledPredictions(probabilities, truth, samples.groups, counts), dead_units)
