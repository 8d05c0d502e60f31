"""The loop trains, resumes where it stopped, and gives the same result in one process as in two."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bintally.distributed.process_group import RankContext
from bintally.errors import UserError
from bintally.interruption import Stopped, StopRequest
from bintally.model.network import CountingNetwork, Heads, predict_views
from bintally.params import Augment, Params
from bintally.training.checkpoint import Checkpoints, read_state
from bintally.training.loop import EpochMetrics, TrainingResult, fit
from bintally.training.optimizer import rate
from bintally.training.samples import Samples, plan
from training_helpers import (
    CLASSES,
    Tensors,
    TinyBackbone,
    copy_state,
    feature_array,
    feature_samples,
    make_params,
    memory_mapped,
    pixel_samples,
    run_two_ranks,
    same_tensors,
    single_rank,
    split_samples,
    tiny_network,
)

KEY = "0123456789abcdef" * 4
NO_AUGMENT = dict.fromkeys(Augment.model_fields, 0.0)
# Few samples, and a step that uses every option.
EVERYTHING: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 8,
    "accumulation_steps": 2,
    "optimizer": "adamw",
    "schedule": "one_cycle",
    "warmup": 0.3,
    "weight_decay": 0.01,
    "clip_grad_norm": 1.0,
    "label_smoothing": 0.1,
    "ema_decay": 0.9,
}


@pytest.fixture(scope="module")
def context() -> Iterator[RankContext]:
    with single_rank() as only:
        yield only


class Run:
    """A training with its checkpoints, its stop request and the epochs it reported."""

    def __init__(
        self, context: RankContext, samples: tuple[Samples, Samples], params: Params, folder: Path, key: str = KEY
    ) -> None:
        self.context, self.samples, self.params = context, samples, params
        self.checkpoints = Checkpoints(folder, key, params.launch.checkpoint_s)
        self.stop = StopRequest()
        self.reported: list[EpochMetrics] = []

    def __call__(
        self, network: CountingNetwork, on_epoch: Callable[[EpochMetrics], object] = lambda _metrics: None
    ) -> TrainingResult:
        def report(metrics: EpochMetrics) -> None:
            self.reported.append(metrics)
            on_epoch(metrics)

        train, validation = self.samples
        return fit(network, train, validation, self.params, self.context, self.checkpoints, self.stop, report)

    def request_stop(self) -> None:
        self.stop.came = True

    def newest_checkpoint(self) -> Any:
        return read_state(self.checkpoints.newest()[1])


def with_checkpoint_each_step(params: Params) -> Params:
    return params.model_copy(update={"launch": params.launch.model_copy(update={"checkpoint_s": 0.0})})


def before_each_part(network: CountingNetwork, action: Callable[[], object]) -> None:
    """Call ``action`` before the head processes a part of a training batch."""
    network.head.register_forward_pre_hook(lambda module, _inputs: action() if module.training else None)


# --- training ------------------------------------------------------------------------------------------


@torch.no_grad()
def assert_validated(result: TrainingResult, network: Heads, inputs: torch.Tensor, validation: Samples) -> None:
    """The metrics of the best epoch are those of the final network on all views."""
    logs, _ = predict_views(network.eval(), inputs)
    truth = torch.from_numpy(validation.classes)
    loss, accuracy = nn.functional.nll_loss(logs, truth), (logs.argmax(1) == truth).float().mean()
    assert loss.item() == pytest.approx(result.best.validation_loss, rel=1e-4)
    assert accuracy.item() == pytest.approx(result.best.validation_accuracy)


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.5}, {"ordinal": True}])
def test_it_keeps_the_epoch_with_the_least_validation_loss(
    context: RankContext, tmp_path: Path, options: dict[str, Any]
) -> None:
    # At this rate the validation loss rises again.
    params = make_params(epochs=12, lr=0.3, **options)
    run = Run(context, feature_samples(tmp_path, noise=1.0), params, tmp_path / "run")
    network = tiny_network(ordinal=params.train.ordinal)
    result = run(network)
    assert [metrics.epoch for metrics in run.reported] == list(range(12))
    assert run.reported == result.history
    losses = [metrics.validation_loss for metrics in run.reported]
    assert result.best == run.reported[int(np.argmin(losses))] != run.reported[-1]
    assert result.best.validation_accuracy > 0.8
    assert same_tensors(network.heads().state_dict(), result.state)
    validation = run.samples[1]
    assert_validated(result, network.heads(), torch.from_numpy(validation.source.take(validation.rows)), validation)


def test_it_trains_from_pixels(context: RankContext, tmp_path: Path) -> None:
    params = make_params("all", epochs=8, batch_size=8)
    run, network = Run(context, pixel_samples(tmp_path), params, tmp_path / "run"), tiny_network()
    result = run(network)
    assert result.best.validation_accuracy > 0.8 and result.best.epoch > 0
    validation = run.samples[1]
    pixels = torch.from_numpy(validation.source.take(validation.rows))
    assert_validated(result, network, torch.stack([pixels, pixels.flip(3)], 1), validation)


def test_it_trains_in_bfloat16(context: RankContext, tmp_path: Path) -> None:
    params = make_params(precision="bfloat16")
    result = Run(context, feature_samples(tmp_path), params, tmp_path / "run")(tiny_network())
    assert result.best.validation_accuracy > 0.8
    assert {value.dtype for value in result.state.values()} == {torch.float32}


def smoothed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    logs = logits - logits.logsumexp(1, keepdim=True)
    labels = torch.full_like(logits, smoothing / CLASSES)
    labels[torch.arange(len(targets)), targets] += 1 - smoothing
    return -(labels * logs).sum(1).mean()


def loss_with_lists(heads: Heads, features: torch.Tensor, samples: Samples) -> torch.Tensor:
    """The mean cross-entropy of the count given the products."""
    assert samples.lists
    _, tables = heads.outputs(features)
    evidence = (torch.from_numpy(samples.lists.features)[:, :, None] * tables).sum(1)
    scores = torch.from_numpy(samples.lists.log_prior) + evidence
    return smoothed_cross_entropy(scores, torch.from_numpy(samples.classes), smoothing=0.0)


@pytest.mark.parametrize(
    ("smoothing", "accumulation_steps", "ordinal"), [(0.0, 1, False), (0.3, 1, True), (0.3, 4, False)]
)
def test_a_step_follows_the_gradient_of_both_mean_cross_entropies_the_photographs_smoothed(
    context: RankContext, tmp_path: Path, smoothing: float, accumulation_steps: int, ordinal: bool
) -> None:
    samples = feature_samples(tmp_path)
    params = make_params(
        epochs=1,
        batch_size=64,
        optimizer="sgd",
        momentum=0.0,
        lr=0.5,
        label_smoothing=smoothing,
        accumulation_steps=accumulation_steps,
        ordinal=ordinal,
    )
    network = tiny_network(ordinal=ordinal)
    epoch = plan(60, 64, seed=params.train.seed, epoch=0)
    inputs = torch.from_numpy(samples[0].source.take(samples[0].rows, epoch.flip))
    targets = torch.from_numpy(samples[0].classes)
    logits = network.head(inputs)
    loss = smoothed_cross_entropy(logits, targets, smoothing)
    heads = network.heads()
    gradients = torch.autograd.grad(loss + loss_with_lists(heads, inputs, samples[0]), list(heads.parameters()))
    expected = [p.detach() - 0.5 * g for p, g in zip(heads.parameters(), gradients, strict=True)]

    result = Run(context, samples, params, tmp_path / "run")(network)
    assert result.history[0].train_loss == pytest.approx(loss.item(), rel=1e-5)
    assert result.history[0].train_accuracy == pytest.approx(float((logits.argmax(1) == targets).float().mean()))
    torch.testing.assert_close(list(result.state.values()), expected, atol=1e-6, rtol=1e-5)


def test_lists_teach_the_second_head_and_leave_the_photographs_alone_as_it_is(
    context: RankContext, tmp_path: Path
) -> None:
    samples, params = feature_samples(tmp_path), make_params(ema_decay=0.9, weight_decay=0.01)
    network, older = tiny_network(), tiny_network()
    older.evidence = None
    validation = samples[1]
    features = torch.from_numpy(validation.source.take(validation.rows)[:, 0])
    untrained = loss_with_lists(network.heads(), features, validation).item()
    result = Run(context, samples, params, tmp_path / "run")(network)
    assert loss_with_lists(network.heads(), features, validation).item() < 0.7 * untrained

    without = tuple(replace(part, lists=None) for part in samples)
    expected = Run(context, (without[0], without[1]), params, tmp_path / "older")(older)
    assert same_tensors(network.head.state_dict(), older.head.state_dict())
    for metrics, other in zip(result.history, expected.history, strict=True):
        assert replace(metrics, gradient_norm=other.gradient_norm) == other


def weights_of_each_step(run: Run, network: CountingNetwork) -> list[torch.Tensor]:
    """All weights of the heads before the first step and after every one, of a run with a checkpoint after each."""
    weights: list[torch.Tensor] = []

    def note(state: Tensors) -> None:
        weights.append(nn.utils.parameters_to_vector([value.double() for value in state.values()]).clone())

    before_each_part(network, lambda: note(network.heads().state_dict()))
    run(network)
    note(run.newest_checkpoint()["network"])
    return weights


def test_every_step_has_the_scheduled_rate_and_a_clipped_gradient(context: RankContext, tmp_path: Path) -> None:
    # All gradients are far longer than the clip norm, so the length of a step is proportional to its rate.
    params = make_params(
        epochs=3,
        batch_size=20,
        optimizer="sgd",
        momentum=0.0,
        lr=2.0,
        clip_grad_norm=1e-3,
        schedule="cosine",
        warmup=0.4,
    )
    run = Run(context, feature_samples(tmp_path), with_checkpoint_each_step(params), tmp_path / "run")
    weights = weights_of_each_step(run, tiny_network())
    lengths = [float((after - before).norm()) for before, after in pairwise(weights)]
    assert lengths == pytest.approx([2.0 * 1e-3 * rate(params.train, step, 9) for step in range(9)], rel=1e-3)


def test_the_moving_average_is_of_the_weights_after_every_step(context: RankContext, tmp_path: Path) -> None:
    params = with_checkpoint_each_step(make_params(epochs=1, batch_size=3, ema_decay=0.6))
    run, network = Run(context, feature_samples(tmp_path), params, tmp_path / "run"), tiny_network()
    weights = weights_of_each_step(run, network)
    assert len(weights) == 21
    average = weights[0]
    for done, values in enumerate(weights[1:], start=1):
        decay = min(0.6, (1 + done) / (10 + done))
        average = decay * average + (1 - decay) * values
    kept = nn.utils.parameters_to_vector([value.double() for value in network.heads().state_dict().values()])
    torch.testing.assert_close(kept, average, atol=1e-6, rtol=0)
    assert (kept - weights[-1]).abs().max() > 1e-3


def test_the_moving_average_includes_batch_statistics(context: RankContext, tmp_path: Path) -> None:
    params = with_checkpoint_each_step(make_params("all", epochs=1, batch_size=4, ema_decay=0.5, lr=1e-6))
    run, network = Run(context, pixel_samples(tmp_path), params, tmp_path / "run"), tiny_network()
    start = copy_state(network)
    result = run(network)
    for name, value in run.newest_checkpoint()["network"].items():
        if "running" in name:
            average, first = result.state[name], start[name]
            assert (average - value).norm() < 0.5 * (first - value).norm() and not torch.equal(average, value)
        if "tracked" in name:
            assert result.state[name] == value == 8


@pytest.mark.parametrize("stop_before", [None, 7])
def test_only_some_epochs_are_validated_among_them_the_last(
    context: RankContext, tmp_path: Path, stop_before: int | None
) -> None:
    samples, params = feature_samples(tmp_path), make_params(validate_every=2)
    all_validated = Run(context, samples, make_params(), tmp_path / "all")(tiny_network())
    run, network, steps = Run(context, samples, params, tmp_path / "run"), tiny_network(), count()
    if stop_before is not None:  # four steps an epoch: within the second
        before_each_part(network, lambda: run.request_stop() if next(steps) == stop_before else None)
        with pytest.raises(Stopped):
            run(network)
        run, network = Run(context, samples, params, tmp_path / "run"), tiny_network(seed=9)
    result = run(network)
    assert result.history == run.reported == [all_validated.history[epoch] for epoch in (1, 3, 4)]


# --- trainable parameters and inputs -------------------------------------------------------------------


@pytest.mark.parametrize(("trainable", "stages"), [("head", set()), (1, {"upper"}), ("all", {"lower", "upper"})])
def test_only_trainable_stages_change_their_statistics_included(
    context: RankContext, tmp_path: Path, trainable: str | int, stages: set[str]
) -> None:
    params = make_params(trainable, epochs=1, batch_size=8, weight_decay=0.1)
    network = tiny_network()
    before = copy_state(network)
    Run(context, pixel_samples(tmp_path), params, tmp_path / "run")(network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == (not any(part in name for part in stages | {"head", "evidence"})), (
            name
        )


def test_pixels_are_mirrored_and_augmented_in_full_precision(context: RankContext, tmp_path: Path) -> None:
    train, validation = pixel_samples(tmp_path)

    def network_inputs(precision: str, augment: dict[str, float]) -> torch.Tensor:
        images: list[torch.Tensor] = []
        network = tiny_network()
        network.backbone.register_forward_pre_hook(lambda _module, inputs: images.append(inputs[0].float().clone()))
        params = make_params("all", augment, epochs=1, batch_size=10, precision=precision)
        Run(context, (train, validation), params, tmp_path / "run")(network)
        return torch.cat(images[:3])

    epoch = plan(30, 10, seed=1, epoch=0)
    order = np.concatenate(epoch.batches)
    pixels = torch.from_numpy(train.source.take(train.rows[order])).float()
    flip = torch.from_numpy(epoch.flip[order])[:, None, None, None]
    plain = network_inputs("float32", NO_AUGMENT)
    assert torch.equal(plain, torch.where(flip, pixels.flip(3), pixels))
    augmented = network_inputs("float32", {})
    assert (augmented - plain).abs().max() > 10
    torch.testing.assert_close(network_inputs("bfloat16", {}), augmented, atol=1e-3, rtol=0)


def test_images_grow_to_their_size_and_are_validated_at_it(context: RankContext, tmp_path: Path) -> None:
    random, network = np.random.default_rng(0), tiny_network()
    pixels, classes = random.integers(0, 256, (12, 3, 96, 96), dtype=np.uint8), random.integers(0, CLASSES, 12)
    sizes: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
    network.backbone.register_forward_pre_hook(
        lambda _module, inputs: sizes[network.training].append(tuple(inputs[0].shape[2:]))
    )
    samples = split_samples(memory_mapped(pixels, tmp_path), classes, mirrored=True)
    Run(context, samples, make_params("all", epochs=6, initial_image_size=32), tmp_path / "run")(network)
    # One step an epoch; they have their size after two thirds of the epochs.
    assert sizes == {True: [(size, size) for size in (32, 32, 64, 96, 96, 96)], False: [(96, 96)] * 6}


# --- interruption --------------------------------------------------------------------------------------


class Interruption(Exception):
    pass


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Samples, Samples]:
    return pixel_samples(tmp_path_factory.mktemp("pixels"), number=36)


@pytest.fixture(scope="module")
def uninterrupted(
    context: RankContext, pixels: tuple[Samples, Samples], tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingResult, Tensors]:
    """A training with every option, and the network's state after it."""
    folder, network = tmp_path_factory.mktemp("uninterrupted"), tiny_network()
    result = Run(context, pixels, make_params("all", **EVERYTHING), folder)(network)
    assert len(result.history) == 3
    return result, copy_state(network)


def assert_same(
    run: Run, result: TrainingResult, network: CountingNetwork, expected: tuple[TrainingResult, Tensors]
) -> None:
    assert run.reported == result.history == expected[0].history
    assert result.best == expected[0].best
    assert same_tensors(result.state, expected[0].state) and same_tensors(network.state_dict(), expected[1])


def test_a_training_stopped_after_every_single_step_gives_the_same_bytes(
    context: RankContext, pixels: tuple[Samples, Samples], uninterrupted: tuple[TrainingResult, Tensors], tmp_path: Path
) -> None:
    params = make_params("all", **EVERYTHING)
    for stopped in range(100):
        run, network = Run(context, pixels, params, tmp_path), tiny_network(seed=4 + stopped)
        before_each_part(network, run.request_stop)
        try:
            result = run(network)
        except Stopped:
            assert run.checkpoints.newest()[0] == stopped + 1
            continue
        break
    # Three steps in each of three epochs; the last run has no step left, but an epoch to validate.
    assert stopped == 9
    assert_same(run, result, network, uninterrupted)


def test_a_training_stopped_in_validation_gives_the_same_bytes(
    context: RankContext, pixels: tuple[Samples, Samples], uninterrupted: tuple[TrainingResult, Tensors], tmp_path: Path
) -> None:
    params = make_params("all", **EVERYTHING)
    run, network = Run(context, pixels, params, tmp_path), tiny_network()
    network.head.register_forward_pre_hook(lambda module, _inputs: None if module.training else run.request_stop())
    with pytest.raises(Stopped):
        run(network)
    assert run.reported == [] and run.checkpoints.newest()[0] == 3
    run, network = Run(context, pixels, params, tmp_path), tiny_network(seed=9)
    assert_same(run, run(network), network, uninterrupted)


@pytest.mark.parametrize("part", [2, 8, 18])
def test_a_training_broken_off_within_a_step_gives_the_same_bytes(
    context: RankContext,
    pixels: tuple[Samples, Samples],
    uninterrupted: tuple[TrainingResult, Tensors],
    tmp_path: Path,
    part: int,
) -> None:
    params = with_checkpoint_each_step(make_params("all", **EVERYTHING))
    run, network = Run(context, pixels, params, tmp_path), tiny_network()
    parts = count(1)

    def break_off() -> None:
        if next(parts) == part:
            raise Interruption

    before_each_part(network, break_off)
    with pytest.raises(Interruption):
        run(network)
    assert run.checkpoints.newest()[0] == ((part - 1) // 2 or -1)
    run, network = Run(context, pixels, params, tmp_path), tiny_network(seed=4 if part < 3 else 9)
    assert_same(run, run(network), network, uninterrupted)


def test_the_best_weights_outlive_an_interruption_after_them(context: RankContext, tmp_path: Path) -> None:
    params = with_checkpoint_each_step(make_params(epochs=12, lr=0.3))
    samples = feature_samples(tmp_path, noise=1.0)
    expected = Run(context, samples, params, tmp_path / "uninterrupted")(tiny_network())

    def break_off(metrics: EpochMetrics) -> None:
        if metrics.epoch == expected.best.epoch + 1:
            raise Interruption

    with pytest.raises(Interruption):
        Run(context, samples, params, tmp_path / "run")(tiny_network(), break_off)
    resumed = Run(context, samples, params, tmp_path / "run")(tiny_network(seed=9))
    assert resumed.best == expected.best and resumed.history == expected.history
    assert same_tensors(resumed.state, expected.state)


# --- failures ------------------------------------------------------------------------------------------


def spoiled_samples(folder: Path, rows: Sequence[int], value: float) -> tuple[Samples, Samples]:
    array, classes = feature_array()
    array[list(rows)] = value
    return split_samples(memory_mapped(array, folder), classes, mirrored=True)


@pytest.mark.parametrize(("value", "accumulation_steps"), [(np.nan, 1), (np.inf, 2)])
def test_a_loss_that_is_not_finite_names_the_images_and_changes_no_weight(
    context: RankContext, tmp_path: Path, value: float, accumulation_steps: int
) -> None:
    params = with_checkpoint_each_step(make_params(accumulation_steps=accumulation_steps, label_smoothing=0.1))
    # The last sample of the third batch, so in its last part.
    sample = plan(60, 16, params.train.seed, epoch=0).batches[2][-1]
    row = feature_samples(tmp_path / "intact")[0].rows[sample]
    run, network = Run(context, spoiled_samples(tmp_path, [row], value), params, tmp_path / "run"), tiny_network()
    with pytest.raises(UserError) as caught:
        run(network)
    assert str(caught.value) == (
        f"the loss is not finite in epoch 0, step 2, on images bin-{row:02}; "
        "lower train.lr (0.01) or set train.clip_grad_norm"
    )
    assert run.checkpoints.newest()[0] == 2
    assert same_tensors(network.heads().state_dict(), run.newest_checkpoint()["network"])


def test_five_of_many_images_without_a_finite_loss_are_named(context: RankContext, tmp_path: Path) -> None:
    network = tiny_network()
    with torch.no_grad():
        # Class 2 has probability 0: an infinite loss for its images and, by label smoothing, for all others.
        network.head.get_parameter("2.bias")[2] = -math.inf
    params = make_params(batch_size=60, label_smoothing=0.1)
    run = Run(context, feature_samples(tmp_path), params, tmp_path / "run")
    with pytest.raises(UserError, match=r"step 0, on images (bin-\d\d, ){4}bin-\d\d and 55 more; lower"):
        run(network)


def test_images_are_named_if_only_the_sum_of_their_losses_overflows(context: RankContext, tmp_path: Path) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.head.get_parameter("2.bias")[2] = -1e38
    run = Run(context, feature_samples(tmp_path), make_params(batch_size=60), tmp_path / "run")
    with pytest.raises(UserError, match=r"step 0, on images bin-\d\d, .* and \d+ more; lower"):
        run(network)


class InfiniteSlope(TinyBackbone):
    """Its features are finite, their gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(1))

    def trainable_stages(self, trainable: str | int) -> list[list[nn.Parameter]]:
        return [*super().trainable_stages(trainable), [self.zero]]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + self.zero.sqrt()


def test_a_gradient_that_is_not_finite_is_an_error_if_it_is_clipped(context: RankContext, tmp_path: Path) -> None:
    run = Run(context, pixel_samples(tmp_path), make_params("all", clip_grad_norm=1.0), tmp_path / "run")
    network = tiny_network(backbone=InfiniteSlope)
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(UserError, match=r"^the gradient is not finite in epoch 0, step 0; lower train\.lr \(0\.01\)"):
        run(network)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))


class TooLarge(TinyBackbone):
    """Allocates more memory than any machine has."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + torch.empty(2**56)


class TooLargeForGpu(TinyBackbone):
    """Raises what a GPU without memory raises."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Broken(TinyBackbone):
    """Raises an error that has nothing to do with memory."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.parametrize("backbone", [TooLarge, TooLargeForGpu])
def test_out_of_memory_says_what_to_lower(context: RankContext, tmp_path: Path, backbone: type[TinyBackbone]) -> None:
    params = make_params("all", batch_size=12, accumulation_steps=3)
    with pytest.raises(UserError) as caught:
        Run(context, pixel_samples(tmp_path), params, tmp_path / "run")(tiny_network(backbone=backbone))
    remedy = "lower train.batch_size (12) or model.image_size, or raise train.accumulation_steps (3)"
    assert str(caught.value) == f"out of memory on cpu: {remedy}"


def test_another_error_is_not_reported_as_out_of_memory(context: RankContext, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        Run(context, pixel_samples(tmp_path), make_params("all"), tmp_path / "run")(tiny_network(backbone=Broken))


@pytest.mark.parametrize(("ranks", "accumulation_steps"), [(16, 1), (4, 4)])
def test_more_ranks_and_parts_than_samples_in_a_batch_are_an_error(
    context: RankContext, tmp_path: Path, ranks: int, accumulation_steps: int
) -> None:
    # 60 samples in batches of at most 17 are four batches of 15.
    params = make_params(batch_size=17, accumulation_steps=accumulation_steps)
    with pytest.raises(UserError) as caught:
        Run(replace(context, world_size=ranks), feature_samples(tmp_path), params, tmp_path / "run")(tiny_network())
    assert str(caught.value) == (
        f"launch.ranks: {ranks} ranks cannot share batches of 15 samples in {accumulation_steps} parts; "
        "lower it, or train.accumulation_steps"
    )


def test_as_many_parts_as_samples_in_a_batch_are_not_too_many(context: RankContext, tmp_path: Path) -> None:
    params = make_params(batch_size=17, accumulation_steps=15, epochs=1)
    assert len(Run(context, feature_samples(tmp_path), params, tmp_path / "run")(tiny_network()).history) == 1


def test_a_validation_loss_that_is_never_finite_is_an_error(context: RankContext, tmp_path: Path) -> None:
    samples = spoiled_samples(tmp_path, [0], np.nan)  # row 0 is a validation sample
    with pytest.raises(UserError, match=r"^the validation loss is not finite in any epoch; lower train\.lr \(0\.01\)$"):
        Run(context, samples, make_params(), tmp_path / "run")(tiny_network())


def test_an_epoch_without_a_finite_validation_loss_does_not_hide_later_ones(
    context: RankContext, tmp_path: Path
) -> None:
    run, network = Run(context, feature_samples(tmp_path), make_params(epochs=3), tmp_path / "run"), tiny_network()

    def spoil(module: nn.Module, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
        return logits if module.training or run.reported else logits * math.nan

    network.head.register_forward_hook(spoil)
    result = run(network)
    assert math.isnan(result.history[0].validation_loss)
    assert result.best == min(result.history[1:], key=lambda metrics: metrics.validation_loss)


# --- one process or two --------------------------------------------------------------------------------


# Plain steps: Adam divides by the size of a gradient, and so amplifies rounding.
SHARED = EVERYTHING | {"optimizer": "sgd", "lr": 1.0, "batch_size": 11, "clip_grad_norm": 0.5}
Outcome = dict[str, Any]


def shared_run(context: RankContext, folder: Path, name: str, key: str = KEY) -> Run:
    """A training from pixels with every option; its batches of 10 do not divide evenly."""
    samples = pixel_samples(folder / f"data-{context.rank}", number=45)
    return Run(context, samples, make_params("all", **SHARED), folder / f"{name}-{context.rank}", key)


def history_tensor(result: TrainingResult) -> torch.Tensor:
    return torch.tensor(
        [[m.train_loss, m.train_accuracy, m.validation_loss, m.validation_accuracy] for m in result.history]
    )


def error_of(run: Run) -> str:
    with pytest.raises(UserError) as caught:
        run(tiny_network())
    return str(caught.value)


def train_together(context: RankContext, folder: Path) -> Outcome:
    """Train; train again, stop in an epoch and in validation, resume from the other machine's checkpoint; fail."""
    network = tiny_network()
    whole = shared_run(context, folder, "whole")(network)
    outcome: Outcome = {"state": whole.state, "network": network.state_dict(), "history": history_tensor(whole)}

    run, network, parts = shared_run(context, folder, "stopped"), tiny_network(), count(1)

    def stop_one_rank() -> None:
        if next(parts) == 9 and context.rank == 1:  # in the fifth step
            run.request_stop()

    before_each_part(network, stop_one_rank)
    with pytest.raises(Stopped):
        run(network)
    outcome["stopped at"] = run.checkpoints.newest()[0]
    if context.rank == 0:
        run.checkpoints.remove()
    outcome["resumed"] = shared_run(context, folder, "stopped")(tiny_network(seed=9 + context.rank)).state

    run, network = shared_run(context, folder, "validating"), tiny_network()
    if context.rank == 1:
        network.head.register_forward_pre_hook(lambda module, _inputs: None if module.training else run.request_stop())
    with pytest.raises(Stopped):
        run(network)
    outcome["stopped in validation at"] = run.checkpoints.newest()[0]

    outcome["other key"] = error_of(shared_run(context, folder, "other", key=str(context.rank) + KEY[1:]))
    samples = spoiled_samples(folder / f"spoiled-{context.rank}", [7, 40], np.nan)
    outcome["not finite"] = error_of(Run(context, samples, make_params(batch_size=60), folder / "none"))
    return outcome


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Outcome]:
    """The outcomes of two processes, each as if on a machine of its own."""
    return run_two_ranks(train_together, tmp_path_factory.mktemp("two"), machines=True)


def test_two_ranks_agree_with_one(context: RankContext, tmp_path: Path, two_ranks: tuple[Outcome, Outcome]) -> None:
    first, second = two_ranks
    assert same_tensors(first["state"], second["state"]) and torch.equal(first["history"], second["history"])
    assert same_tensors(first["network"], first["state"]) and same_tensors(second["network"], first["state"])
    network = tiny_network()
    start = copy_state(network)
    result = shared_run(context, tmp_path, "single")(network)
    torch.testing.assert_close(first["state"], result.state, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first["history"], history_tensor(result), atol=1e-5, rtol=1e-4)
    # The weights compared have been trained, in the backbone too.
    assert result.best.epoch == 2
    assert (result.state["backbone.lower.0.weight"] - start["backbone.lower.0.weight"]).norm() > 0.1


def test_a_stop_of_one_rank_stops_both_and_the_checkpoint_of_either_is_enough(
    two_ranks: tuple[Outcome, Outcome],
) -> None:
    for outcome in two_ranks:
        assert outcome["stopped at"] == 5 and outcome["stopped in validation at"] == 3
        assert same_tensors(outcome["resumed"], two_ranks[0]["state"])


def test_machines_with_different_parameters_data_or_code_are_an_error(two_ranks: tuple[Outcome, Outcome]) -> None:
    for outcome in two_ranks:
        assert outcome["other key"].startswith("the machines do not have the same parameters, data and code")


def test_every_rank_names_the_images_of_all(two_ranks: tuple[Outcome, Outcome]) -> None:
    for outcome in two_ranks:
        assert "step 0, on images bin-07, bin-40; lower" in outcome["not finite"]
