"""The training loop. What a step computes does not depend on how many ranks share it, nor on where it was resumed."""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from bintally.errors import UserError
from bintally.interruption import Stopped, StopRequest
from bintally.model.network import CountingNetwork, mirror
from bintally.params import Params
from bintally.progress import progress
from bintally.training.augment import Augmentation, Dropout, random_affine
from bintally.training.checkpoint import Checkpoints, State, read_state
from bintally.training.distributed import Place, all_gather, all_reduce_sum, broadcast_bytes, convert_batch_norm
from bintally.training.loss import TrainingLoss
from bintally.training.optimizer import learned, make_optimizer, parameter_groups, rate, set_rate
from bintally.training.samples import Batch, Samples, plan, steps_an_epoch, training_batches
from bintally.training.validation import said

NAMED = 5  # images a fault names at most
# What PyTorch's allocator, C++, oneDNN and Python's threads say where memory is short.
NO_MEMORY = ("can't allocate memory", "bad_alloc", "could not create a primitive", "can't start new thread")
# The parts of a step, as a profile names them. SUM waits for the other ranks and for what the GPU was asked to do.
MARKS = INPUT, FORWARD, SUM, BACKWARD, UPDATE = ("input", "forward", "sum over ranks", "backward", "update")
GROWN = 2 / 3  # of the epochs in which images that grow have done so


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch came to: mean loss (in validation the cross-entropy, in nats) and share of right answers.

    ``gradient_norm`` is the mean over the steps of the norm of all that learns, before it is clipped.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    gradient_norm: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class TrainingResult:
    """A finished training: the learned state of the epoch with the least validation loss, and every epoch."""

    best: EpochMetrics
    state: dict[str, torch.Tensor]
    history: list[EpochMetrics]


@dataclass
class TrainState:
    """How far a training is, and what the epoch under way has come to over all ranks."""

    epoch: int = 0
    step: int = 0
    """Steps done in the epoch."""
    loss: float = 0.0
    correct: float = 0.0
    gradient_norms: torch.Tensor | float = 0.0
    """Their sum, left on the device, so that no step waits for it."""


def fit(
    network: CountingNetwork,
    train: Samples,
    validation: Samples,
    params: Params,
    place: Place,
    checkpoints: Checkpoints,
    stop: StopRequest,
    report: Callable[[EpochMetrics], None],
    stepped: Callable[[int, int], object] = lambda _done, _total: None,
) -> TrainingResult:
    """Learn what `model.trainable` names and leave ``network`` as the best of the epochs validated had it.

    Where samples are features the head alone is used. ``report`` is called, on the ranks that write, with every epoch,
    those before an interruption included; ``stepped`` on all of them after every step, its gradients still there, with
    how many are done and how many there will be.

    Raises UserError if the loss is not finite, memory runs out, there are fewer samples in a batch than ranks and parts,
    or the checkpoint cannot be written; Stopped, the state saved, after ``stop`` came to any rank.
    """
    return _Training(network, train, validation, params, place, checkpoints, stop).run(report, stepped)


class _Training:
    def __init__(
        self,
        network: CountingNetwork,
        train: Samples,
        validation: Samples,
        params: Params,
        place: Place,
        checkpoints: Checkpoints,
        stop: StopRequest,
    ) -> None:
        self._params, self._place, self._checkpoints, self._stop = params.train, place, checkpoints, stop
        self._train, self._validation = train, validation
        self._steps = steps_an_epoch(len(train.rows), self._params.batch_size)
        smallest = len(train.rows) // self._steps
        if smallest < place.ranks * self._params.accumulation_steps:
            raise UserError(
                f"launch.ranks: {place.ranks} ranks cannot share batches of {smallest} samples "
                f"in {self._params.accumulation_steps} parts; lower it, or train.accumulation_steps"
            )
        stages = learned(network, params.model.trainable)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        for parameter in (parameter for stage in stages for parameter in stage):
            parameter.requires_grad_(True)
        self._rest = [parameter for stage in stages[:-1] for parameter in stage]
        self._network: nn.Module = network.head if train.kind == "features" else network
        self._backbone = network.backbone
        if place.ranks > 1:
            convert_batch_norm(self._network)
        self._network.to(place.device)
        self._optimizer = make_optimizer(parameter_groups(stages, self._params), self._params)
        self._averaged = copy.deepcopy(self._network).eval() if self._params.ema_decay else self._network
        self._moves = params.augment
        self._augment = (
            Augmentation(params.augment, train.source.shape[-1], self._params.seed, place.device)
            if train.kind == "pixels"
            else None
        )
        self._bfloat16 = self._params.precision == "bfloat16" or (
            self._params.precision == "auto" and place.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        self._objective = TrainingLoss(self._params, params.model_counts, place.device, train.taught, train.facts)
        self._classes = len(params.model_counts)
        self._dropout = (
            Dropout(self._params.dropout, network.backbone.width, self._params.seed, place.device)
            if self._params.dropout
            else None
        )
        _, numbers = np.unique(np.asarray(train.groups), return_inverse=True)
        self._groups = torch.from_numpy(numbers).to(place.device)
        self._model: nn.Module = self._network
        self._head_alone: bool | None = None
        self._stopping = False
        self._at = TrainState()
        self._history: list[EpochMetrics] = []
        self._best: State = {}

    def run(self, report: Callable[[EpochMetrics], None], stepped: Callable[[int, int], object]) -> TrainingResult:
        self._resume()
        if self._place.is_main_process:
            for epoch in self._history:
                report(epoch)
        total, mine = self._params.epochs * self._steps, len(self._validation.rows[:: self._place.ranks])
        try:
            with progress("train", total - self._done(), "steps", quiet=not self._place.is_main_process) as advance:

                def tell() -> None:
                    advance(1)
                    stepped(self._done(), total)

                while self._at.epoch < self._params.epochs:
                    self._train_epoch(tell)
                    done = self._at.epoch + 1
                    if done % self._params.validate_every == 0 or done == self._params.epochs:
                        with progress(
                            "validate", mine, "images", quiet=not self._place.is_main_process, brief=True
                        ) as seen:
                            epoch = self._validated(seen)
                        if _loss(epoch) < min(map(_loss, self._history), default=math.inf):
                            self._best = copy.deepcopy(self._averaged.state_dict())
                        self._history.append(epoch)
                        if self._place.is_main_process:
                            report(epoch)
                    self._at = TrainState(done)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_lack_of_memory(error):
                raise
            raise UserError(
                f"out of memory on {self._place.device}: lower train.batch_size ({self._params.batch_size}) or "
                f"model.image_size, or raise train.accumulation_steps ({self._params.accumulation_steps})"
            ) from error
        if not self._best:
            raise UserError(f"the validation loss is not finite in any epoch; lower train.lr ({self._params.lr})")
        self._network.load_state_dict(self._best)
        return TrainingResult(min(self._history, key=_loss), self._best, self._history)

    # --- steps ---------------------------------------------------------------------------------------------

    def _train_epoch(self, tell: Callable[[], None]) -> None:
        params, place = self._params, self._place
        self._prepare()
        together = self._train.groups if params.twins else None
        epoch = plan(len(self._train.rows), params.batch_size, params.seed, self._at.epoch, together)
        parts = training_batches(self._train, epoch, self._at.step, params.accumulation_steps, place)
        for batch in epoch.batches[self._at.step :]:
            set_rate(self._optimizer, rate(params, self._done(), params.epochs * self._steps))
            self._optimizer.zero_grad()
            for last in [False] * (params.accumulation_steps - 1) + [True]:
                with record_function(INPUT):
                    part = next(parts)
                self._backward(part, len(batch), last)
            with record_function(UPDATE):
                learning = self._learning()
                norm = nn.utils.get_total_norm([one.grad for one in learning if one.grad is not None])
                self._at.gradient_norms = self._at.gradient_norms + norm
                if params.clip_grad_norm is not None:
                    if not torch.isfinite(norm):
                        raise UserError(f"the gradient is not finite {self._where()}; {self._remedy()}")
                    nn.utils.clip_grads_with_norm_(learning, params.clip_grad_norm, norm)
                self._optimizer.step()
                self._at.step += 1
                self._average()
            tell()
            if self._stopping or (place.is_main_process and self._checkpoints.due()):
                self._save()
            if self._stopping:
                raise Stopped

    def _backward(self, part: Batch, batch_size: int, last: bool) -> None:
        """Forward and backward of a part of a batch; gradients are exchanged with the ``last`` one."""
        place, model = self._place, self._model
        exchange = nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
        with exchange:
            with record_function(FORWARD):
                inputs = self._inputs(part)
                with torch.autocast(place.device.type, torch.bfloat16, enabled=self._bfloat16):
                    outputs = model(inputs, self._dropout(part.draws) if self._dropout else None).float()
                loss = self._objective.losses(outputs, part.targets, part.chosen).sum()
                loss = loss + self._objective.of_twins(
                    outputs, part.targets, self._groups[torch.from_numpy(part.chosen)]
                )
                correct = (outputs[:, : self._classes].argmax(1) == part.targets).sum()
            with record_function(SUM):
                stops = torch.tensor(float(self._stop.came), device=place.device)
                figures = torch.stack([loss.detach(), correct, stops]).double()
                if place.ranks > 1:
                    all_reduce_sum(figures)
                loss_sum, right, stopping = figures.tolist()
            if not math.isfinite(loss_sum):
                self._name_images(part, outputs)
            self._stopping = stopping > 0
            self._at.loss += loss_sum
            self._at.correct += right
            with record_function(BACKWARD):
                # DistributedDataParallel averages over ranks; the mean over the global batch is wanted.
                (loss * (place.ranks / batch_size)).backward()

    def _inputs(self, part: Batch) -> torch.Tensor:
        if self._train.kind == "maps":
            maps, means = self._backbone.unpack_rows(part.inputs)
            return self._backbone.pack_rows(random_affine(maps, part.draws, self._moves), means)
        if self._augment is None:
            return part.inputs
        pixels = torch.where(part.flip[:, None, None, None], mirror(part.inputs), part.inputs)
        return self._augment(pixels, part.draws, self._side())

    def _side(self) -> int:
        """Of the epoch's images, in pixels: in steps of 32, which backbones halve five times."""
        last = self._train.source.shape[-1]
        first = min(self._params.initial_image_size or last, last)
        grown = self._at.epoch / (GROWN * self._params.epochs)
        return last if grown >= 1 else min(last, first + round(grown * (last - first) / 32) * 32)

    def _prepare(self) -> None:
        """Make the network ready for the epoch at hand: what learns in it, and how it is shared and compiled."""
        head_alone = self._at.epoch < self._params.head_epochs
        if self._head_alone != head_alone:
            self._head_alone = head_alone
            for parameter in self._rest:
                parameter.requires_grad_(not head_alone)
                parameter.grad = None
            self._model = self._network
            if self._params.compile:
                self._model = torch.compile(self._model)  # type: ignore[assignment]
            if self._place.ranks > 1:
                self._model = DistributedDataParallel(
                    self._model,
                    device_ids=[self._place.device] if self._place.device.type == "cuda" else None,
                    gradient_as_bucket_view=True,
                )
        self._network.train()

    def _learning(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._network.parameters() if parameter.grad is not None]

    def _done(self) -> int:
        return self._at.epoch * self._steps + self._at.step

    @torch.no_grad()
    def _average(self) -> None:
        if self._averaged is self._network:
            return
        done = self._done()
        # Short at first, as TensorFlow's ExponentialMovingAverage(num_updates) has it, so that the start is forgotten.
        decay = min(self._params.ema_decay, (1 + done) / (10 + done))
        ours, theirs = self._averaged.state_dict(), self._network.state_dict()
        floating = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[name] for name in floating], [theirs[name] for name in floating], 1 - decay)
        for name in ours.keys() - set(floating):
            ours[name].copy_(theirs[name])

    # --- validation ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def _validated(self, seen: Callable[[int], object]) -> EpochMetrics:
        """Loss and accuracy over every validation sample once, each rank taking its share."""
        self._averaged.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self._place.device)
        for batch, logs in said(self._averaged, self._validation, self._place, self._classes, self._bfloat16):
            sums[0] += nn.functional.nll_loss(logs.float(), batch.targets, reduction="sum")
            sums[1] += (logs.argmax(1) == batch.targets).sum()
            seen(len(batch.targets))
            if self._stop.came:
                sums[2] = 1
                break
        if self._place.ranks > 1:
            all_reduce_sum(sums)
        if sums[2] > 0:
            self._save()
            raise Stopped
        loss, correct, _ = (sums / len(self._validation.rows)).tolist()
        trained = len(self._train.rows)
        norm = float(self._at.gradient_norms) / self._steps
        return EpochMetrics(self._at.epoch, self._at.loss / trained, self._at.correct / trained, norm, loss, correct)

    # --- faults --------------------------------------------------------------------------------------------

    def _name_images(self, part: Batch, outputs: torch.Tensor) -> None:
        """Every rank learns which images of the batch have a loss that is not finite, and stops for them."""
        losses = self._objective.losses(outputs, part.targets, part.chosen)
        bad = torch.zeros(len(self._train.rows), dtype=torch.int32, device=self._place.device)
        bad[torch.from_numpy(part.chosen[(~losses.isfinite()).cpu().numpy()])] = 1
        if self._place.ranks > 1:
            all_reduce_sum(bad)
        names = [self._train.names[at] for at in bad.nonzero().flatten().tolist()]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise UserError(
            f"the loss is not finite {self._where()}, on images {', '.join(names[:NAMED])}{more}; {self._remedy()}"
        )

    def _where(self) -> str:
        return f"in epoch {self._at.epoch}, step {self._at.step}"

    def _remedy(self) -> str:
        return f"lower train.lr ({self._params.lr}) or set train.clip_grad_norm"

    def _save(self) -> None:
        if self._place.is_main_process:
            self._checkpoints.save(
                self._done(),
                {
                    "network": self._network.state_dict(),
                    "averaged": self._averaged.state_dict() if self._params.ema_decay else {},
                    "optimizer": self._optimizer.state_dict(),
                    "random": torch.get_rng_state(),
                    "position": asdict(self._at),
                    "best": self._best,
                    "history": [asdict(row) for row in self._history],
                },
            )

    def _resume(self) -> None:
        """Go on from the newest checkpoint any machine has; the schedule and the samples follow from the position."""
        place = self._place
        step, content = self._checkpoints.newest() if place.is_main_process else (-1, b"")
        found = all_gather(torch.tensor([step, int(self._checkpoints.key[:15], 16)], device=place.device), place)
        if len(found[:, 1].unique()) > 1:
            raise UserError(
                "the machines do not have the same parameters, data and code; bring all to the same commit and data"
            )
        if found[:, 0].max() < 0:
            return
        state = read_state(broadcast_bytes(content, int(found[:, 0].argmax()), place))
        self._network.load_state_dict(state["network"])
        if self._params.ema_decay:
            self._averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self._at = TrainState(**state["position"])
        self._best = {name: value.to(place.device) for name, value in state["best"].items()}
        self._history = [EpochMetrics(**row) for row in state["history"]]


def _loss(epoch: EpochMetrics) -> float:
    """What the best epoch has least of: infinite where it is no number, which nothing is less than."""
    return math.inf if math.isnan(epoch.validation_loss) else epoch.validation_loss


def _is_lack_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(said in str(error) for said in NO_MEMORY)
