"""Batch statistics over the batches of all ranks."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from bintally.distributed.process_group import RankContext
from bintally.training.batch_norm import GlobalBatchNorm, convert_batch_norm
from training_helpers import Tensors, run_two_ranks, single_rank


def global_batch() -> torch.Tensor:
    """Seven images of three channels: more on the first of two ranks than on the second, and unlike those."""
    batch = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(2)) * 2 + 1
    batch[:4] += 3
    return batch


def run_batch_norm(norm: nn.BatchNorm2d, images: torch.Tensor) -> Tensors:
    """Two steps of batch normalisation: the last's outputs and gradients, the statistics, and their use."""
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    weights = torch.linspace(0, 1, images[0].numel(), device=images.device).view(images.shape[1:])
    for _ in range(2):
        inputs = images.clone().requires_grad_()
        norm.zero_grad()
        outputs = norm(inputs)
        (outputs.sigmoid() * weights).sum().backward()
    gradients = (inputs.grad, norm.weight.grad, norm.bias.grad)
    names = ("inputs' gradient", "weight's gradient", "bias's gradient")
    tensors = {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    tensors["outputs"] = outputs
    tensors |= {f"its {name}": buffer for name, buffer in norm.named_buffers()}
    tensors["outputs in use"] = norm.eval()(global_batch().to(images.device))
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def run_share(context: RankContext, _folder: Path) -> Tensors:
    """The results of a rank with its share of the batch."""
    mine = np.array_split(np.arange(7), context.world_size)[context.rank]
    return run_batch_norm(GlobalBatchNorm(3).to(context.device), global_batch()[mine].to(context.device))


def test_batch_statistics_are_those_of_the_global_batch(tmp_path: Path) -> None:
    expected = run_batch_norm(nn.BatchNorm2d(3), global_batch())
    assert len(expected) == 8
    first, second = run_two_ranks(run_share, tmp_path)
    joint = dict(first)
    for name in ("outputs", "inputs' gradient"):
        joint[name] = torch.cat([first[name], second[name]])
    for name in ("weight's gradient", "bias's gradient"):
        joint[name] = first[name] + second[name]
    with single_rank() as context:
        torch.testing.assert_close(run_share(context, tmp_path), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(joint, expected, atol=1e-5, rtol=1e-4)


def test_only_plain_batch_normalisation_is_converted() -> None:
    class Own(nn.BatchNorm2d):
        pass

    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3)), Own(3))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    convert_batch_norm(network)
    assert [type(module) for module in network.modules()] == [
        nn.Sequential,
        nn.Conv2d,
        nn.Sequential,
        GlobalBatchNorm,
        Own,
    ]
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
