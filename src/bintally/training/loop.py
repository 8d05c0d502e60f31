"""The training loop. A step computes the same whatever the number of ranks and wherever the training was resumed."""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from bintally.distributed.process_group import (
    RankContext,
    all_gather,
    all_reduce_sum,
    broadcast_bytes,
    require_same_key,
    start_sum,
)
from bintally.errors import UserError
from bintally.interruption import Stopped, StopRequest
from bintally.memory import is_out_of_memory
from bintally.model.network import CountingNetwork, Heads
from bintally.model.views import horizontal_flip
from bintally.params import Params
from bintally.progress import progress
from bintally.training.augment import Augmentation
from bintally.training.batch_norm import convert_batch_norm
from bintally.training.checkpoint import Checkpoints, State, read_state
from bintally.training.optimizer import make_optimizer, parameter_groups, rate, set_rate, trainable_stages
from bintally.training.samples import Batch, Samples, plan, steps_an_epoch, training_batches
from bintally.training.validation import predict_batches

MAX_NAMED = 5  # images that an error message names
# The parts of a step, as a profile names them. On a CPU, SUM waits for the other ranks.
MARKS = INPUT, FORWARD, SUM, BACKWARD, UPDATE = ("input", "forward", "sum over ranks", "backward", "update")
GROWING = 2 / 3  # of the epochs, in which `train.initial_image_size` grows to the full size


@dataclass(frozen=True)
class EpochMetrics:
    """Mean loss and accuracy of one epoch, over all ranks; the validation loss is the cross-entropy, in nats."""

    epoch: int
    train_loss: float
    train_accuracy: float
    gradient_norm: float
    """Mean over the steps, before clipping."""
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class TrainingResult:
    """A finished training: the epoch with the least validation loss, its weights, and every validated epoch."""

    best: EpochMetrics
    state: dict[str, torch.Tensor]
    history: list[EpochMetrics]


@dataclass
class TrainState:
    """The progress of a training, and the sums of its current epoch over all ranks."""

    epoch: int = 0
    step: int = 0
    """Steps done in the epoch."""
    loss: float = 0.0
    correct: float = 0.0
    gradient_norms: torch.Tensor | float = 0.0
    """Kept on the device, so that no step waits for it."""


def fit(
    network: CountingNetwork,
    train: Samples,
    validation: Samples,
    params: Params,
    context: RankContext,
    checkpoints: Checkpoints,
    stop: StopRequest,
    on_epoch: Callable[[EpochMetrics], object],
    on_step: Callable[[int, int], object] = lambda _done, _total: None,
) -> TrainingResult:
    """Train what `model.trainable` names and leave ``network`` with the weights of the best validated epoch.

    Args:
        train, validation: if their kind is ``features``, only the heads are used.
        on_epoch: called on main ranks with every validated epoch, those before an interruption included.
        on_step: called on all ranks after every step, gradients still there, with the steps done and their total.

    Raises:
        UserError: the loss is not finite, memory runs out, a batch has fewer samples than ranks and parts, or a
            checkpoint cannot be written.
        Stopped: ``stop`` came to any rank; the state is saved.
    """
    trainer = _Trainer(network, train, validation, params, context, checkpoints, stop)
    try:
        return trainer.fit(on_epoch, on_step)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory on {context.device}: lower train.batch_size ({params.train.batch_size}) or "
            f"model.image_size, or raise train.accumulation_steps ({params.train.accumulation_steps})"
        ) from error


class _Trainer:
    def __init__(
        self,
        network: CountingNetwork,
        train: Samples,
        validation: Samples,
        params: Params,
        context: RankContext,
        checkpoints: Checkpoints,
        stop: StopRequest,
    ) -> None:
        self._params, self._context, self._checkpoints, self._stop = params.train, context, checkpoints, stop
        self._train, self._validation = train, validation
        self._steps = steps_an_epoch(len(train.rows), self._params.batch_size)
        self._total_steps = self._params.epochs * self._steps
        smallest = len(train.rows) // self._steps
        if smallest < context.world_size * self._params.accumulation_steps:
            raise UserError(
                f"launch.ranks: {context.world_size} ranks cannot share batches of {smallest} samples "
                f"in {self._params.accumulation_steps} parts; lower it, or train.accumulation_steps"
            )
        trainable = [parameter for stage in trainable_stages(network, params.model.trainable) for parameter in stage]
        network.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)
        self._network = network.heads() if train.kind == "features" else network
        if context.world_size > 1:
            convert_batch_norm(self._network)
        self._network.to(context.device)
        self._optimizer = make_optimizer(parameter_groups(trainable, self._params), self._params)
        self._averaged = copy.deepcopy(self._network).eval() if self._params.ema_decay else self._network
        self._augmentation = (
            Augmentation(params.augment, train.source.shape[-1], self._params.seed, context.device)
            if train.kind == "pixels"
            else None
        )
        self._bfloat16 = self._params.precision == "bfloat16" or (
            self._params.precision == "auto" and context.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        self._state = TrainState()
        self._history: list[EpochMetrics] = []
        self._best: State = {}
        self._stopping = False

    def fit(self, on_epoch: Callable[[EpochMetrics], object], on_step: Callable[[int, int], object]) -> TrainingResult:
        self._resume()
        self._model = self._distributed()
        if self._context.is_main:
            for metrics in self._history:
                on_epoch(metrics)
        remaining = self._total_steps - self._steps_done()
        with progress("train", remaining, "steps", quiet=not self._context.is_main) as advance:

            def after_step() -> None:
                advance(1)
                on_step(self._steps_done(), self._total_steps)

            while self._state.epoch < self._params.epochs:
                self._train_epoch(after_step)
                done = self._state.epoch + 1
                if done % self._params.validate_every == 0 or done == self._params.epochs:
                    metrics = self._validate()
                    if _loss(metrics) < min(map(_loss, self._history), default=math.inf):
                        self._best = copy.deepcopy(self._averaged.state_dict())
                    self._history.append(metrics)
                    if self._context.is_main:
                        on_epoch(metrics)
                self._state = TrainState(done)
        if self._params.networks > 1:
            self._save()  # the next one may be interrupted
        if not self._best:
            raise UserError(f"the validation loss is not finite in any epoch; lower train.lr ({self._params.lr})")
        self._network.load_state_dict(self._best)
        return TrainingResult(min(self._history, key=_loss), self._best, self._history)

    def _distributed(self) -> nn.Module:
        """The network to call in a step: compiled, gradients exchanged between ranks."""
        model: nn.Module = _Outputs(self._network)
        if self._params.compile:
            model = torch.compile(model)  # type: ignore[assignment]
        if self._context.world_size > 1:
            on_gpu = self._context.device.type == "cuda"
            devices = [self._context.device] if on_gpu else None
            model = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        return model

    def _steps_done(self) -> int:
        return self._state.epoch * self._steps + self._state.step

    # --- steps ---------------------------------------------------------------------------------------------

    def _train_epoch(self, after_step: Callable[[], None]) -> None:
        params, state = self._params, self._state
        self._network.train()
        epoch = plan(len(self._train.rows), params.batch_size, params.seed, state.epoch)
        parts = training_batches(self._train, epoch, state.step, params.accumulation_steps, self._context)
        for batch in epoch.batches[state.step :]:
            set_rate(self._optimizer, params.lr * rate(params, self._steps_done(), self._total_steps))
            self._optimizer.zero_grad()
            for number in range(1, params.accumulation_steps + 1):
                with record_function(INPUT):
                    part = next(parts)
                self._backward(part, len(batch), last=number == params.accumulation_steps)
            with record_function(UPDATE):
                self._update()
            after_step()
            if self._stopping or (self._context.is_main and self._checkpoints.due()):
                self._save()
            if self._stopping:
                raise Stopped

    def _backward(self, part: Batch, batch_size: int, last: bool) -> None:
        """Forward and backward of a part of a batch; ranks exchange gradients with the ``last`` one."""
        context, model = self._context, self._model
        without_exchange = isinstance(model, DistributedDataParallel) and not last
        with model.no_sync() if without_exchange else nullcontext():  # type: ignore[operator]
            with record_function(FORWARD):
                inputs = self._inputs(part)
                with torch.autocast(context.device.type, torch.bfloat16, enabled=self._bfloat16):
                    outputs, tables = (output.float() for output in model(inputs))
                of_photographs = self._losses(outputs, part)
                losses = of_photographs + self._losses_with_lists(tables, part)
                loss = losses.sum()
                correct = (outputs.argmax(1) == part.targets).sum()
            with record_function(SUM):
                stop = torch.tensor(float(self._stop.came), device=context.device)
                sums = torch.stack([loss.detach(), of_photographs.detach().sum(), correct, stop]).double()
                read_sums = start_sum(sums, context)
            with record_function(BACKWARD):
                # DistributedDataParallel averages over ranks; the mean over the global batch is wanted.
                (loss * (context.world_size / batch_size)).backward()
            trained, loss_sum, correct_sum, stop_sum = read_sums()
            if not math.isfinite(trained):
                self._raise_not_finite(part, losses)
            self._stopping = stop_sum > 0
            self._state.loss += loss_sum
            self._state.correct += correct_sum

    def _inputs(self, part: Batch) -> torch.Tensor:
        if self._augmentation is None:
            return part.inputs
        pixels = torch.where(part.flip[:, None, None, None], horizontal_flip(part.inputs), part.inputs)
        return self._augmentation(pixels, part.draws, self._image_size())

    def _image_size(self) -> int:
        """Side of the epoch's images, in pixels; it grows in steps of 32, which backbones halve five times."""
        last = self._train.source.shape[-1]
        first = min(self._params.initial_image_size or last, last)
        grown = self._state.epoch / (GROWING * self._params.epochs)
        return last if grown >= 1 else min(last, first + round(grown * (last - first) / 32) * 32)

    def _losses(self, outputs: torch.Tensor, part: Batch) -> torch.Tensor:
        smoothing = self._params.label_smoothing
        return functional.cross_entropy(outputs, part.targets, reduction="none", label_smoothing=smoothing)

    def _losses_with_lists(self, tables: torch.Tensor, part: Batch) -> torch.Tensor:
        """The cross-entropy, (n,), of the count given the products, 0 without lists; its prior is not smoothed."""
        if self._train.lists is None:
            return tables.new_zeros(len(tables))
        evidence = torch.einsum("nf,nfc->nc", part.list_features, tables)
        return functional.cross_entropy(part.log_prior + evidence, part.targets, reduction="none")

    def _update(self) -> None:
        params = self._params
        updated = [parameter for parameter in self._network.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in updated if parameter.grad is not None])
        self._state.gradient_norms = self._state.gradient_norms + norm
        if params.clip_grad_norm is not None:
            if not torch.isfinite(norm):
                raise UserError(f"the gradient is not finite {self._where()}; {self._remedy()}")
            nn.utils.clip_grads_with_norm_(updated, params.clip_grad_norm, norm)
        self._optimizer.step()
        self._state.step += 1
        self._update_average()

    @torch.no_grad()
    def _update_average(self) -> None:
        if self._averaged is self._network:
            return
        done = self._steps_done()
        # Short at first, as in TensorFlow's ExponentialMovingAverage(num_updates), so that the start is forgotten.
        decay = min(self._params.ema_decay, (1 + done) / (10 + done))
        averaged, current = self._averaged.state_dict(), self._network.state_dict()
        floating = [name for name, value in averaged.items() if value.is_floating_point()]
        torch._foreach_lerp_([averaged[name] for name in floating], [current[name] for name in floating], 1 - decay)
        for name in averaged.keys() - set(floating):
            averaged[name].copy_(current[name])

    # --- validation ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self) -> EpochMetrics:
        """Loss and accuracy over every validation sample once, each rank with its share."""
        context, state = self._context, self._state
        share = len(self._validation.rows[:: context.world_size])
        self._averaged.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=context.device)
        with progress("validate", share, "images", quiet=not context.is_main, brief=True) as advance:
            for batch, logs in predict_batches(self._averaged, self._validation, context, self._bfloat16):
                sums[0] += functional.nll_loss(logs.float(), batch.targets, reduction="sum")
                sums[1] += (logs.argmax(1) == batch.targets).sum()
                advance(len(batch.targets))
                if self._stop.came:
                    sums[2] = 1
                    break
        if context.world_size > 1:
            all_reduce_sum(sums)
        if sums[2] > 0:
            self._save()
            raise Stopped
        loss, accuracy, _ = (sums / len(self._validation.rows)).tolist()
        samples, norm = len(self._train.rows), float(state.gradient_norms) / self._steps
        return EpochMetrics(state.epoch, state.loss / samples, state.correct / samples, norm, loss, accuracy)

    # --- losses and gradients that are not finite ----------------------------------------------------------

    def _raise_not_finite(self, part: Batch, losses: torch.Tensor) -> None:
        """Raise, on every rank, a UserError that names the images of all ranks without a finite loss."""
        bad = torch.zeros(len(self._train.rows), dtype=torch.int32, device=self._context.device)
        overflows = ~(losses * len(bad)).isfinite()  # a loss so large that the sum overflows counts, too
        bad[torch.from_numpy(part.chosen[overflows.cpu().numpy()])] = 1
        if self._context.world_size > 1:
            all_reduce_sum(bad)
        names = [self._train.names[row] for row in bad.nonzero().flatten().tolist()]
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        raise UserError(
            f"the loss is not finite {self._where()}, on images {', '.join(names[:MAX_NAMED])}{more}; {self._remedy()}"
        )

    def _where(self) -> str:
        return f"in epoch {self._state.epoch}, step {self._state.step}"

    def _remedy(self) -> str:
        return f"lower train.lr ({self._params.lr}) or set train.clip_grad_norm"

    # --- checkpoints ---------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self._context.is_main:
            self._checkpoints.save(
                self._steps_done(),
                {
                    "network": self._network.state_dict(),
                    "averaged": self._averaged.state_dict() if self._params.ema_decay else {},
                    "optimizer": self._optimizer.state_dict(),
                    "random": torch.get_rng_state(),
                    "state": asdict(self._state),
                    "best": self._best,
                    "history": [asdict(metrics) for metrics in self._history],
                },
            )

    def _resume(self) -> None:
        """Load the newest checkpoint of any machine; the learning rate and the samples follow from the step."""
        context = self._context
        require_same_key(self._checkpoints.key, context)
        step, content = self._checkpoints.newest() if context.is_main else (-1, b"")
        steps = all_gather(torch.tensor([step], device=context.device), context)
        if steps.max() < 0:
            return
        saved = read_state(broadcast_bytes(content, int(steps.argmax()), context))
        self._network.load_state_dict(saved["network"])
        if self._params.ema_decay:
            self._averaged.load_state_dict(saved["averaged"])
        self._optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        self._state = TrainState(**saved["state"])
        self._best = {name: value.to(context.device) for name, value in saved["best"].items()}
        self._history = [EpochMetrics(**metrics) for metrics in saved["history"]]


class _Outputs(nn.Module):
    """Calls ``outputs`` of a network: DistributedDataParallel and torch.compile take a module's ``forward``."""

    def __init__(self, network: Heads) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.network.outputs(inputs)


def _loss(metrics: EpochMetrics) -> float:
    """The validation loss, infinite if it is not a number."""
    return math.inf if math.isnan(metrics.validation_loss) else metrics.validation_loss
