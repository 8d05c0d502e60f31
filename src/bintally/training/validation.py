"""Predictions for the samples of a split."""

from collections.abc import Iterator

import torch

from bintally.distributed.process_group import RankContext
from bintally.model.network import Heads, predict_views
from bintally.model.views import stack_views
from bintally.training.samples import Batch, Samples, validation_batches


def predict_batches(
    network: Heads, samples: Samples, context: RankContext, bfloat16: bool = False
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """This rank's share of all samples, each batch with its log-probabilities (n, classes), views averaged.

    Args:
        network: Heads if the samples are features, else a CountingNetwork.
    """
    for batch in validation_batches(samples, context):
        inputs = stack_views(batch.inputs, samples.mirrored) if samples.kind == "pixels" else batch.inputs
        with torch.autocast(context.device.type, torch.bfloat16, enabled=bfloat16):
            logs, _ = predict_views(network, inputs)
        yield batch, logs
