"""The training loop. The global batch, the order of samples and their mirroring do not depend on the ranks."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bintally.faults import Fault
from bintally.model.network import log_distribution, mirror, views
from bintally.params import Train
from bintally.progress import progress
from bintally.training.checkpoint import Checkpoint
from bintally.training.distribution import Place, summed

VALIDATION_BATCH = 64


@dataclass(frozen=True)
class Samples:
    """Encoded bins of one split, read by memory map."""

    array: NDArray[Any]
    """(bins, views, width) features or (bins, 3, size, size) pixels of every bin."""
    rows: NDArray[np.int64]
    """Which of them are in the split."""
    classes: NDArray[np.int64]
    """The class of each of ``rows``."""
    mirrored: bool

    def one_view(self, chosen: NDArray[np.int64], flip: NDArray[np.bool_], device: torch.device) -> torch.Tensor:
        """One view of each chosen sample, the mirrored one where ``flip``."""
        rows = self.rows[chosen]
        if self.array.ndim == 3:
            return torch.from_numpy(self.array[rows, flip.astype(int)]).to(device)
        pixels = torch.from_numpy(self.array[rows]).to(device)
        return torch.where(torch.from_numpy(flip).to(device)[:, None, None, None], mirror(pixels), pixels)

    def all_views(self, chosen: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        """Every view of each chosen sample: (n, views, …)."""
        inputs = torch.from_numpy(self.array[self.rows[chosen]]).to(device)
        return inputs if self.array.ndim == 3 else views(inputs, self.mirrored)

    def targets(self, chosen: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        return torch.from_numpy(self.classes[chosen]).to(device)


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: mean cross-entropy in nats, share of right answers."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class Fit:
    """A finished training: the learned state of the epoch with the least validation loss, and every epoch."""

    best: Epoch
    state: dict[str, torch.Tensor]
    history: list[Epoch]


def batches(samples: int, batch_size: int, seed: int, epoch: int) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """An epoch's batches: sample numbers and whether each is mirrored.

    The epoch is cut into as few batches as ``batch_size`` allows, equal in size to within one, so that no step
    is made from a handful of samples left over.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(samples)
    flip = random.random(samples) < 0.5
    steps = math.ceil(samples / batch_size)
    return [(part, flip[part]) for part in np.array_split(order, steps)]


def fit(
    network: nn.Module,
    train: Samples,
    validation: Samples,
    params: Train,
    place: Place,
    checkpoint: Checkpoint,
    report: Callable[[Epoch], None],
) -> Fit:
    """Learn ``network``'s parameters with Adam on cross-entropy.

    ``network`` maps one view to logits: a head where samples are features, a CountingNetwork where they are pixels.
    ``report`` is called with every epoch, those before an interruption included.
    Raises Fault if the loss is not finite or there are fewer samples in a batch than ranks.
    """
    smallest = len(batches(len(train.rows), params.batch_size, 0, 0)[-1][0])
    if smallest < place.ranks:
        raise Fault(f"launch.ranks: {place.ranks} ranks cannot share batches of {smallest} samples; lower it")
    network.to(place.device)
    model = DistributedDataParallel(network, device_ids=[place.device] if place.device.type == "cuda" else None)
    optimizer = torch.optim.Adam(network.parameters(), lr=params.lr)
    history: list[Epoch] = []
    best_state = copy.deepcopy(network.state_dict())
    if state := checkpoint.load():
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        best_state = state["best"]
        history = [Epoch(**row) for row in state["history"]]
    if place.rank == 0:
        for epoch in history:
            report(epoch)

    steps = math.ceil(len(train.rows) / params.batch_size)
    todo = params.epochs - len(history)
    with progress("train", todo * steps, "steps", quiet=place.rank > 0) as advance:
        for number in range(len(history), params.epochs):
            train_loss, train_accuracy = _train_epoch(model, optimizer, train, params, number, place, advance)
            validation_loss, validation_accuracy = _validate(network, validation, place)
            epoch = Epoch(number, train_loss, train_accuracy, validation_loss, validation_accuracy)
            if epoch.validation_loss < min((e.validation_loss for e in history), default=math.inf):
                best_state = copy.deepcopy(network.state_dict())
            history.append(epoch)
            if place.rank == 0:
                checkpoint.save(
                    {
                        "network": network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "best": best_state,
                        "history": [asdict(row) for row in history],
                    }
                )
                report(epoch)
    return Fit(min(history, key=lambda epoch: epoch.validation_loss), best_state, history)


def _train_epoch(
    model: DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    samples: Samples,
    params: Train,
    epoch: int,
    place: Place,
    advance: Callable[[int], object],
) -> tuple[float, float]:
    model.train()
    sums = torch.zeros(2, dtype=torch.float64, device=place.device)
    for step, (batch, flip) in enumerate(batches(len(samples.rows), params.batch_size, params.seed, epoch)):
        mine = np.array_split(np.arange(len(batch)), place.ranks)[place.rank]
        targets = samples.targets(batch[mine], place.device)
        logits = model(samples.one_view(batch[mine], flip[mine] & samples.mirrored, place.device))
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
        if not torch.isfinite(loss):
            raise Fault(f"the loss is not finite in epoch {epoch}, step {step}; lower train.lr ({params.lr})")
        optimizer.zero_grad()
        # DistributedDataParallel averages over ranks; the mean over the global batch is wanted.
        (loss * (place.ranks / len(batch))).backward()
        optimizer.step()
        sums += torch.stack([loss.detach(), (logits.argmax(1) == targets).sum()])
        advance(1)
    loss_sum, correct = summed(sums).tolist()
    return loss_sum / len(samples.rows), correct / len(samples.rows)


@torch.no_grad()
def _validate(network: nn.Module, samples: Samples, place: Place) -> tuple[float, float]:
    """Loss and accuracy over every sample once, each rank taking its share."""
    network.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=place.device)
    mine = np.arange(len(samples.rows))[place.rank :: place.ranks]
    for start in range(0, len(mine), VALIDATION_BATCH):
        chosen = mine[start : start + VALIDATION_BATCH]
        logs = log_distribution(network, samples.all_views(chosen, place.device))
        targets = samples.targets(chosen, place.device)
        sums[0] += nn.functional.nll_loss(logs, targets, reduction="sum")
        sums[1] += (logs.argmax(1) == targets).sum()
    loss, correct = summed(sums).tolist()
    return loss / len(samples.rows), correct / len(samples.rows)
