"""What training makes small."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from bintally.params import Train


class TrainingLoss:
    """Cross-entropy against labels as soft as `train` asks for, and squared errors of the expected count beside it."""

    def __init__(
        self,
        params: Train,
        counts: Sequence[int],
        device: torch.device,
        taught: torch.Tensor | None = None,
        facts: torch.Tensor | None = None,
    ) -> None:
        """Know what stays the same.

        Args:
            taught: float32 (samples, classes), what the teachers say of each sample.
            facts: float32 (samples, facts), what its record says, NaN where it does not.
        """
        self._counts = torch.tensor(counts, dtype=torch.float32, device=device)
        distance = self._counts[:, None] - self._counts
        if params.label_spread:
            labels = (-(distance**2) / (2 * params.label_spread**2)).softmax(1)
        else:
            labels = (distance == 0).float()
        smoothing = params.label_smoothing
        self._labels = (1 - smoothing) * labels + smoothing / len(counts)
        self._squared_error, self._twins = params.squared_error, params.twins
        self._distilled, self._taught = params.distilled, None if taught is None else taught.to(device)
        self._records, self._facts = params.records, None if facts is None else facts.to(device)

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor, chosen: NDArray[np.int64]) -> torch.Tensor:
        """What each sample adds: float32 (n,), of float32 outputs (n, classes + facts) and int64 targets (n,).

        Args:
            chosen: (n,) numbers of the samples.
        """
        logits, told = outputs.tensor_split([len(self._counts)], 1)
        labels = self._labels[targets]
        if self._taught is not None:
            labels = torch.lerp(labels, self._taught[torch.from_numpy(chosen)], self._distilled)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        if self._squared_error:
            losses = losses + self._squared_error * (self._expected(logits) - self._counts[targets]) ** 2
        if self._facts is not None:
            facts = self._facts[torch.from_numpy(chosen)]
            errors = torch.where(facts.isnan(), 0, told - facts.nan_to_num())
            losses = losses + self._records * (errors**2).mean(1)
        return losses

    def of_twins(self, outputs: torch.Tensor, targets: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """What pairs of photographs of one bin add: the squared error of their difference, half for each of the two.

        Args:
            groups: (n,) equal where samples are of one bin.
        """
        if not self._twins:
            return outputs.new_zeros(())
        error = self._expected(outputs[:, : len(self._counts)]) - self._counts[targets]
        pairs = (groups[:, None] == groups).triu(1)
        return self._twins * ((error[:, None] - error) ** 2)[pairs].sum()

    def _expected(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(1) @ self._counts
