"""Batch normalisation over the global batch of all ranks."""

from typing import Any

import torch
from torch import distributed, nn

from bintally.distributed.process_group import all_reduce_sum


class _Normalise(torch.autograd.Function):
    """Batch normalisation over the global batch, with one exchange forward and one backward."""

    @staticmethod
    def forward(
        saved: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        number = inputs.new_tensor([inputs.numel() / inputs.shape[1]])
        mean = inputs.mean((0, 2, 3))
        centred = inputs - mean[:, None, None]
        variance = (centred * centred).mean((0, 2, 3))  # torch.var_mean takes ten times as long on a CPU
        rows = [torch.empty(2 * len(mean) + 1, device=inputs.device) for _ in range(distributed.get_world_size())]
        distributed.all_gather(rows, torch.cat([number, mean, variance]))
        numbers, means, variances = torch.stack(rows).split([1, len(mean), len(mean)], dim=1)
        number = numbers.sum()
        whole = (means * numbers).sum(0) / number
        variance = ((variances + (means - whole).square()) * numbers).sum(0) / number
        inverse, shift = (variance + eps).rsqrt(), mean - whole
        saved.save_for_backward(centred, shift, weight, inverse, number)
        saved.mark_non_differentiable(whole, variance, number)
        scale = weight * inverse
        outputs = torch.addcmul((bias + shift * scale)[:, None, None], centred, scale[:, None, None])
        return outputs, whole, variance, number

    @staticmethod
    def backward(saved: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        centred, shift, weight, inverse, number = saved.saved_tensors
        gradient = gradients[0]
        total = gradient.sum((0, 2, 3))
        along = ((gradient * centred).sum((0, 2, 3)) + shift * total) * inverse
        # Every rank's loss depends on each image through the statistics; the gradients of weight and bias stay this
        # rank's share.
        total_all, along_all = all_reduce_sum(torch.cat([total, along])).chunk(2)
        scale = weight * inverse
        slope = -scale * inverse * along_all / number
        offset = slope * shift - scale * total_all / number
        result = torch.addcmul(offset[:, None, None], centred, slope[:, None, None])
        return result.addcmul_(gradient, scale[:, None, None]), along, total, None


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the global batch, in float32, on CPU and GPU.

    With it the result does not depend on how a batch is divided between ranks. PyTorch's SyncBatchNorm needs GPUs.
    Backward follows Ioffe and Szegedy 2015, section 3.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(inputs)
        outputs, mean, variance, number = _Normalise.apply(inputs.float(), self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            momentum = self.momentum if self.momentum is not None else 0.1
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (number / (number - 1).clamp_min(1)), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        normalised: torch.Tensor = outputs.to(inputs.dtype)
        return normalised


def convert_batch_norm(module: nn.Module) -> None:
    """Turn every nn.BatchNorm2d in ``module`` into a GlobalBatchNorm, in place."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = GlobalBatchNorm
