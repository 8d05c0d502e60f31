"""The loop learns, goes on where it stopped, and comes to the same in one process as in two."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from toys import (
    CLASSES,
    CPU,
    WIDTH,
    Tensors,
    TinyBackbone,
    alone,
    both,
    equal,
    parameters,
    rows,
    snapshot,
    split,
    tiny_network,
    toy,
    toy_array,
    toy_pixels,
)

from bintally.errors import UserError
from bintally.interruption import Stopped, StopRequest
from bintally.model.backbone import Backbone
from bintally.model.encoded import Kind
from bintally.model.network import CountingNetwork, Head, log_distribution
from bintally.params import Params
from bintally.training.augment import Dropout
from bintally.training.checkpoint import Checkpoints, read_state
from bintally.training.distributed import Place
from bintally.training.loop import EpochMetrics, TrainingResult, fit
from bintally.training.optimizer import rate
from bintally.training.samples import Samples, plan

KEY = "0123456789abcdef" * 4
# Few samples, and a step with everything in it.
EVERYTHING: dict[str, Any] = {
    "epochs": 3,
    "head_epochs": 1,
    "batch_size": 8,
    "accumulate": 2,
    "optimizer": "adamw",
    "layer_decay": 0.7,
    "schedule": "one_cycle",
    "warmup": 0.3,
    "weight_decay": 0.01,
    "clip": 1.0,
    "label_smoothing": 0.1,
    "label_spread": 0.5,
    "squared_error": 0.1,
    "dropout": 0.2,
    "ema_decay": 0.9,
}


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A process that trains alone."""
    with alone() as one:
        yield one


class Run:
    """A training and all that is around it."""

    def __init__(self, place: Place, samples: tuple[Samples, Samples], params: Params, folder: Path, key: str = KEY):
        self.place, self.samples, self.params = place, samples, params
        self.checkpoints = Checkpoints(folder, key, params.launch.checkpoint_s)
        self.stop = StopRequest()
        self.reported: list[EpochMetrics] = []

    def __call__(
        self, network: CountingNetwork, report: Callable[[EpochMetrics], object] = lambda _epoch: None
    ) -> TrainingResult:
        def both_reports(epoch: EpochMetrics) -> None:
            self.reported.append(epoch)
            report(epoch)

        train, validation = self.samples
        return fit(network, train, validation, self.params, self.place, self.checkpoints, self.stop, both_reports)

    def ask(self) -> None:
        """Ask it to stop."""
        self.stop.came = True

    def saved(self) -> Any:
        """The newest checkpoint."""
        return read_state(self.checkpoints.newest()[1])


def always_saving(params: Params) -> Params:
    return params.model_copy(update={"launch": params.launch.model_copy(update={"checkpoint_s": 0.0})})


def before_each_step(network: CountingNetwork, action: Callable[[], object]) -> None:
    """Call ``action`` whenever the head is about to work on a part of a training batch."""
    network.head.register_forward_pre_hook(lambda module, _inputs: action() if module.training else None)


# --- learning ------------------------------------------------------------------------------------------


@torch.no_grad()
def assert_validated(fitted: TrainingResult, network: nn.Module, inputs: torch.Tensor, validation: Samples) -> None:
    """What the best epoch is said to have come to is what the network that is left comes to on all views."""
    logs = log_distribution(network.eval(), inputs)
    truth = torch.from_numpy(validation.classes)
    loss, accuracy = nn.functional.nll_loss(logs, truth), (logs.argmax(1) == truth).float().mean()
    assert loss.item() == pytest.approx(fitted.best.validation_loss, rel=1e-4)
    assert accuracy.item() == pytest.approx(fitted.best.validation_accuracy)


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_it_learns_and_keeps_the_epoch_with_the_least_validation_loss(
    place: Place, tmp_path: Path, average: float
) -> None:
    # So fast that the validation loss rises again.
    params = parameters(epochs=12, lr=0.3, average=average)
    run, network = Run(place, toy(tmp_path, noise=1.0), params, tmp_path / "run"), tiny_network()
    fitted = run(network)
    assert [epoch.epoch for epoch in run.reported] == list(range(12))
    assert run.reported == fitted.history
    losses = [epoch.validation_loss for epoch in run.reported]
    assert fitted.best == run.reported[int(np.argmin(losses))] != run.reported[-1]
    assert fitted.best.validation_accuracy > 0.9
    assert equal(network.head.state_dict(), fitted.state)

    validation = run.samples[1]
    assert_validated(fitted, network.head, torch.from_numpy(validation.source.take(validation.rows)), validation)


def test_it_learns_from_pixels(place: Place, tmp_path: Path) -> None:
    params = parameters("all", epochs=8, batch_size=8)
    run, network = Run(place, toy_pixels(tmp_path), params, tmp_path / "run"), tiny_network()
    fitted = run(network)
    assert fitted.best.validation_accuracy > 0.8 and fitted.best.epoch > 0
    validation = run.samples[1]
    pixels = torch.from_numpy(validation.source.take(validation.rows))
    assert_validated(fitted, network, torch.stack([pixels, pixels.flip(3)], 1), validation)


def smoothed(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy against a target that has ``smoothing`` of its weight spread over all classes evenly."""
    logs = logits - logits.logsumexp(1, keepdim=True)
    wanted = torch.full_like(logits, smoothing / CLASSES)
    wanted[torch.arange(len(targets)), targets] += 1 - smoothing
    return -(wanted * logs).sum(1).mean()


@pytest.mark.parametrize(("smoothing", "accumulate"), [(0.0, 1), (0.3, 1), (0.3, 4)])
def test_a_step_follows_the_gradient_of_the_mean_smoothed_cross_entropy(
    place: Place, tmp_path: Path, smoothing: float, accumulate: int
) -> None:
    samples = toy(tmp_path)
    params = parameters(
        epochs=1,
        batch_size=64,
        optimizer="sgd",
        momentum=0.0,
        lr=0.5,
        label_smoothing=smoothing,
        accumulation_steps=accumulate,
    )
    network = tiny_network()
    epoch = plan(60, 64, seed=params.train.seed, epoch=0)
    inputs = torch.from_numpy(samples[0].source.take(samples[0].rows, epoch.flip))
    targets = torch.from_numpy(samples[0].classes)
    logits = network.head(inputs)
    loss = smoothed(logits, targets, smoothing)
    gradients = torch.autograd.grad(loss, list(network.head.parameters()))
    expected = [p.detach() - 0.5 * g for p, g in zip(network.head.parameters(), gradients, strict=True)]

    fitted = Run(place, samples, params, tmp_path / "run")(network)
    assert fitted.history[0].train_loss == pytest.approx(loss.item(), rel=1e-5)
    assert fitted.history[0].train_accuracy == pytest.approx(float((logits.argmax(1) == targets).float().mean()))
    torch.testing.assert_close(list(fitted.state.values()), expected, atol=1e-6, rtol=1e-5)


def test_a_step_compares_twins_and_leaves_features_out(place: Place, tmp_path: Path) -> None:
    samples, network = toy(tmp_path), tiny_network()
    params = parameters(
        epochs=1, batch_size=64, optimizer="sgd", momentum=0.0, lr=0.5, twins=0.3, squared_error=0.2, dropout=0.4
    )
    epoch = plan(60, 64, seed=params.train.seed, epoch=0)
    inputs = torch.from_numpy(samples[0].source.take(samples[0].rows, epoch.flip))
    targets = torch.from_numpy(samples[0].classes)
    kept = Dropout(0.4, WIDTH, params.train.seed, CPU)(torch.from_numpy(epoch.draws))
    logits = network.head(inputs * kept)
    errors = logits.softmax(1) @ torch.tensor([1.0, 2, 3]) - (targets + 1)
    twins = errors[::2] - errors[1::2]  # thirty bins of two photographs each
    loss = smoothed(logits, targets, 0.0) + 0.2 * (errors**2).mean() + 0.3 * (twins**2).sum() / 60
    gradients = torch.autograd.grad(loss, list(network.head.parameters()))
    expected = [p.detach() - 0.5 * g for p, g in zip(network.head.parameters(), gradients, strict=True)]

    fitted = Run(place, samples, params, tmp_path / "run")(network)
    assert fitted.history[0].train_loss == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(list(fitted.state.values()), expected, atol=1e-6, rtol=1e-5)


def test_an_ordinal_head_learns_too(place: Place, tmp_path: Path) -> None:
    run, network = Run(place, toy(tmp_path), parameters(ordinal=True), tmp_path / "run"), tiny_network(ordinal=True)
    fitted = run(network)
    assert fitted.best.validation_accuracy > 0.8
    validation = run.samples[1]
    assert_validated(fitted, network.head, torch.from_numpy(validation.source.take(validation.rows)), validation)


def test_batches_in_parts_come_to_the_same(place: Place, tmp_path: Path) -> None:
    samples = toy(tmp_path)
    whole, parts = (
        Run(place, samples, parameters(accumulation_steps=number, clip_grad_norm=1.0), tmp_path / str(number))(
            tiny_network()
        )
        for number in (1, 4)
    )
    torch.testing.assert_close(parts.state, whole.state, atol=1e-6, rtol=1e-6)
    assert [e.train_loss for e in parts.history] == pytest.approx([e.train_loss for e in whole.history], rel=1e-6)


def weights_of_each_step(run: Run, network: CountingNetwork) -> list[torch.Tensor]:
    """All weights of the head before the first step and after every one, of a run that saves after each."""
    weights: list[torch.Tensor] = []

    def note(state: Tensors) -> None:
        weights.append(nn.utils.parameters_to_vector([value.double() for value in state.values()]).clone())

    before_each_step(network, lambda: note(network.head.state_dict()))
    run(network)
    note(run.saved()["network"])
    return weights


def test_every_step_has_the_rate_of_the_schedule_and_no_gradient_is_longer_than_allowed(
    place: Place, tmp_path: Path
) -> None:
    # Gradients far longer than allowed, so that every step is as long as its rate says.
    params = always_saving(
        parameters(
            epochs=3,
            batch_size=20,
            optimizer="sgd",
            momentum=0.0,
            lr=2.0,
            clip_grad_norm=1e-3,
            schedule="cosine",
            warmup=0.4,
        )
    )
    run = Run(place, toy(tmp_path), params, tmp_path / "run")
    weights = weights_of_each_step(run, tiny_network())
    lengths = [float((after - before).norm()) for before, after in pairwise(weights)]
    assert lengths == pytest.approx([2.0 * 1e-3 * rate(params.train, step, 9) for step in range(9)], rel=1e-3)


def test_the_moving_average_is_of_the_weights_after_every_step(place: Place, tmp_path: Path) -> None:
    params = always_saving(parameters(epochs=1, batch_size=3, ema_decay=0.6))
    run, network = Run(place, toy(tmp_path), params, tmp_path / "run"), tiny_network()
    weights = weights_of_each_step(run, network)
    assert len(weights) == 21
    average = weights[0]
    for done, one in enumerate(weights[1:], start=1):
        decay = min(0.6, (1 + done) / (10 + done))
        average = decay * average + (1 - decay) * one
    kept = nn.utils.parameters_to_vector([value.double() for value in network.head.state_dict().values()])
    torch.testing.assert_close(kept, average, atol=1e-6, rtol=0)
    assert (kept - weights[-1]).abs().max() > 1e-3


def test_the_average_of_a_network_has_its_statistics_too(place: Place, tmp_path: Path) -> None:
    params = parameters("all", epochs=1, batch_size=4, ema_decay=0.5, lr=1e-6)
    run = Run(place, toy_pixels(tmp_path), always_saving(params), tmp_path / "run")
    network = tiny_network()
    start = snapshot(network)
    fitted = run(network)
    for name, value in run.saved()["network"].items():
        if "running" in name:
            # Behind where it is, but far from where it began.
            kept, first = fitted.state[name], start[name]
            assert (kept - value).norm() < 0.5 * (first - value).norm() and not torch.equal(kept, value)
        if "tracked" in name:
            assert fitted.state[name] == value == 8


@pytest.mark.parametrize("stop_before", [None, 7])
def test_some_epochs_alone_are_validated_the_last_among_them(
    place: Place, tmp_path: Path, stop_before: int | None
) -> None:
    samples, params = toy(tmp_path), parameters(validate_every=2)
    whole = Run(place, samples, parameters(), tmp_path / "whole")(tiny_network())
    run, network, steps = Run(place, samples, params, tmp_path / "run"), tiny_network(), count()
    if stop_before is not None:  # four steps an epoch: within the second
        before_each_step(network, lambda: run.ask() if next(steps) == stop_before else None)
        with pytest.raises(Stopped):
            run(network)
        run, network = Run(place, samples, params, tmp_path / "run"), tiny_network(seed=9)
    fitted = run(network)
    assert fitted.history == run.reported == [whole.history[epoch] for epoch in (1, 3, 4)]
    assert fitted.best == min(fitted.history, key=lambda epoch: epoch.validation_loss)


# --- what learns ---------------------------------------------------------------------------------------


def changed(before: Tensors, after: Tensors) -> dict[str, set[bool]]:
    """By part of the network, whether its tensors have changed: all, none, or some and some."""
    result: dict[str, set[bool]] = {"lower": set(), "upper": set(), "head": set()}
    for name, value in before.items():
        part = next(part for part in result if part in name)
        result[part].add(not torch.equal(value, after[name]))
    return result


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_the_head_learns_alone_at_first(place: Place, tmp_path: Path, average: float) -> None:
    params = parameters("all", epochs=3, head_epochs=2, batch_size=8, weight_decay=0.1, average=average)
    network = tiny_network()
    states = [snapshot(network)]
    Run(place, toy_pixels(tmp_path), params, tmp_path / "run")(network, lambda epoch: states.append(snapshot(network)))
    head_alone, all_of_it = ({"lower": {backbone}, "upper": {backbone}, "head": {True}} for backbone in (False, True))
    by_epoch = [changed(before, after) for before, after in pairwise(states)]
    assert by_epoch == [head_alone, head_alone, all_of_it]


@pytest.mark.parametrize(
    ("trained", "learns"), [("head", [False, False]), (1, [False, True]), (2, [True, True]), ("all", [True, True])]
)
def test_only_the_stages_named_change_their_statistics_included(
    place: Place, tmp_path: Path, trained: str | int, learns: list[bool]
) -> None:
    params = parameters(trained, epochs=1, batch_size=8, weight_decay=0.1)
    network = tiny_network()
    before = snapshot(network)
    Run(place, toy_pixels(tmp_path), params, tmp_path / "run")(network)
    lower, upper = learns
    assert changed(before, network.state_dict()) == {"lower": {lower}, "upper": {upper}, "head": {True}}


def test_from_maps_the_stages_behind_them_learn_as_they_do_from_pixels(place: Place, tmp_path: Path) -> None:
    none = dict.fromkeys(parameters().augment.model_dump(), 0.0)
    random = np.random.default_rng(1)
    classes = random.integers(0, CLASSES, 12)
    images = torch.from_numpy(random.integers(0, 256, (12, 3, 64, 64), dtype=np.uint8))
    torch.manual_seed(1)
    backbone = Backbone("efficientnet_lite0", 64, "every_scale").eval()
    backbone.cut(2)
    with torch.no_grad():
        maps = torch.stack([backbone.front(view) for view in (images, images.flip(3))], 1)

    def learned(array: NDArray[Any], kind: Kind, augment: dict[str, float]) -> tuple[Tensors, TrainingResult]:
        network = CountingNetwork(copy.deepcopy(backbone), Head(backbone.width, 8, CLASSES, False, 1))
        source = rows(array, tmp_path / kind)
        data = [replace(part, kind=kind) for part in split(source, classes, mirrored=True)]
        params = parameters(2, augment, epochs=2, batch_size=4, optimizer="sgd", ema_decay=0.9)
        fitted = Run(place, (data[0], data[1]), params, tmp_path / "run")(network)
        return snapshot(network), fitted

    state, fitted = learned(maps.numpy(), "maps", none)
    wanted, expected = learned(images.numpy(), "pixels", none)
    for one, other in zip(fitted.history, expected.history, strict=True):
        assert astuple(one) == pytest.approx(astuple(other), rel=1e-3)
    torch.testing.assert_close(state, wanted, rtol=1e-2, atol=1e-3)
    constant = set(backbone.constant())
    same = {key for key, value in backbone.state_dict().items() if torch.equal(value, state[f"backbone.{key}"])}
    assert constant <= same and not any(key.endswith("weight") for key in same - constant)
    shifted, _ = learned(maps.numpy(), "maps", none | {"shift": 0.2})
    assert not torch.allclose(shifted["head.2.weight"], state["head.2.weight"], atol=1e-5)


def test_pixels_reach_the_network_mirrored_and_changed_in_full_precision(place: Place, tmp_path: Path) -> None:
    train, validation = toy_pixels(tmp_path)
    none = dict.fromkeys(parameters().augment.model_dump(), 0.0)

    def seen(precision: str, augment: dict[str, float]) -> torch.Tensor:
        images: list[torch.Tensor] = []
        network = tiny_network()
        network.backbone.register_forward_pre_hook(lambda _module, inputs: images.append(inputs[0].float().clone()))
        params = parameters("all", augment, epochs=1, batch_size=10, precision=precision)
        Run(place, (train, validation), params, tmp_path / "run")(network)
        return torch.cat(images[:3])

    epoch = plan(30, 10, seed=1, epoch=0)
    order = np.concatenate(epoch.batches)
    pixels = torch.from_numpy(train.source.take(train.rows[order])).float()
    flip = torch.from_numpy(epoch.flip[order])[:, None, None, None]
    assert torch.equal(seen("float32", none), torch.where(flip, pixels.flip(3), pixels))

    full = seen("float32", {})
    assert (full - seen("float32", none)).abs().max() > 10
    torch.testing.assert_close(seen("bfloat16", {}), full, atol=1e-3, rtol=0)


def test_images_grow_to_their_size_and_validation_has_it_from_the_start(place: Place, tmp_path: Path) -> None:
    random, network = np.random.default_rng(0), tiny_network()
    pixels, classes = random.integers(0, 256, (12, 3, 96, 96), dtype=np.uint8), random.integers(0, CLASSES, 12)
    sides: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
    network.register_forward_pre_hook(lambda module, inputs: sides[module.training].append(tuple(inputs[0].shape[2:])))
    params = parameters("all", epochs=6, initial_image_size=32)
    Run(place, split(rows(pixels, tmp_path), classes, mirrored=True), params, tmp_path / "run")(network)
    # A step an epoch, grown after two thirds of them.
    assert sides == {True: [(side, side) for side in (32, 32, 64, 96, 96, 96)], False: [(96, 96)] * 6}


def test_bfloat16_learns_too(place: Place, tmp_path: Path) -> None:
    fitted = Run(place, toy(tmp_path), parameters(precision="bfloat16"), tmp_path / "run")(tiny_network())
    assert fitted.best.validation_accuracy > 0.8
    assert {value.dtype for value in fitted.state.values()} == {torch.float32}


# --- interruption --------------------------------------------------------------------------------------


class Once(Exception):
    """What an interrupted training is interrupted by."""


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Samples, Samples]:
    return toy_pixels(tmp_path_factory.mktemp("pixels"), number=36)


@pytest.fixture(scope="module")
def whole(
    place: Place, pixels: tuple[Samples, Samples], tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingResult, Tensors]:
    """A training with everything in it that nothing interrupted, and the network's state after it."""
    run, network = Run(place, pixels, parameters("all", **EVERYTHING), tmp_path_factory.mktemp("whole")), tiny_network()
    fitted = run(network)
    assert fitted.history == run.reported and len(fitted.history) == 3
    return fitted, snapshot(network)


def assert_same(
    run: Run, fitted: TrainingResult, network: CountingNetwork, whole: tuple[TrainingResult, Tensors]
) -> None:
    assert run.reported == fitted.history == whole[0].history
    assert fitted.best == whole[0].best
    assert equal(fitted.state, whole[0].state) and equal(network.state_dict(), whole[1])


def test_a_training_stopped_after_every_single_step_comes_to_the_identical_state(
    place: Place, pixels: tuple[Samples, Samples], whole: tuple[TrainingResult, Tensors], tmp_path: Path
) -> None:
    params = parameters("all", **EVERYTHING)  # saves because it is stopped: a minute is never over
    for stopped in range(100):
        run, network = Run(place, pixels, params, tmp_path), tiny_network(seed=4 + stopped)
        before_each_step(network, run.ask)
        try:
            fitted = run(network)
        except Stopped:
            assert run.checkpoints.newest()[0] == stopped + 1
            continue
        break
    # Three steps in each of three epochs; the last run has no step left, but an epoch to validate.
    assert stopped == 9
    assert_same(run, fitted, network, whole)


def test_a_training_stopped_while_it_validates_goes_on_there(
    place: Place, pixels: tuple[Samples, Samples], whole: tuple[TrainingResult, Tensors], tmp_path: Path
) -> None:
    params = parameters("all", **EVERYTHING)
    run, network = Run(place, pixels, params, tmp_path), tiny_network()
    network.head.register_forward_pre_hook(lambda module, _inputs: None if module.training else run.ask())
    with pytest.raises(Stopped):
        run(network)
    assert run.reported == [] and run.checkpoints.newest()[0] == 3
    run, network = Run(place, pixels, params, tmp_path), tiny_network(seed=9)
    assert_same(run, run(network), network, whole)


@pytest.mark.parametrize("part", [1, 2, 3, 8, 18])
def test_a_training_that_broke_off_within_a_step_comes_to_the_identical_state(
    place: Place, pixels: tuple[Samples, Samples], whole: tuple[TrainingResult, Tensors], tmp_path: Path, part: int
) -> None:
    params = always_saving(parameters("all", **EVERYTHING))
    run, network = Run(place, pixels, params, tmp_path), tiny_network()
    parts = count(1)

    def break_off() -> None:
        if next(parts) == part:
            raise Once

    before_each_step(network, break_off)
    with pytest.raises(Once):
        run(network)
    assert run.checkpoints.newest()[0] == ((part - 1) // 2 or -1)
    run, network = Run(place, pixels, params, tmp_path), tiny_network(seed=4 if part < 3 else 9)
    assert_same(run, run(network), network, whole)


@pytest.mark.parametrize("last", [0, 2])
def test_a_training_that_broke_off_after_an_epoch_comes_to_the_identical_state(
    place: Place, pixels: tuple[Samples, Samples], whole: tuple[TrainingResult, Tensors], tmp_path: Path, last: int
) -> None:
    def break_off(epoch: EpochMetrics) -> None:
        if epoch.epoch == last:
            raise Once

    params = always_saving(parameters("all", **EVERYTHING))
    run = Run(place, pixels, params, tmp_path)
    with pytest.raises(Once):
        run(tiny_network(), break_off)
    assert [epoch.epoch for epoch in run.reported] == list(range(last + 1))
    run, network = Run(place, pixels, params, tmp_path), tiny_network(seed=9)
    assert_same(run, run(network), network, whole)


def test_what_the_best_epoch_had_outlives_an_interruption_after_it(place: Place, tmp_path: Path) -> None:
    params = always_saving(parameters(epochs=12, lr=0.3))
    samples = toy(tmp_path, noise=1.0)
    whole = Run(place, samples, params, tmp_path / "whole")(tiny_network())

    def break_off(epoch: EpochMetrics) -> None:
        if epoch.epoch == whole.best.epoch + 1:
            raise Once

    with pytest.raises(Once):
        Run(place, samples, params, tmp_path / "run")(tiny_network(), break_off)
    resumed = Run(place, samples, params, tmp_path / "run")(tiny_network(seed=9))
    assert resumed.best == whole.best and resumed.history == whole.history
    assert equal(resumed.state, whole.state)


def test_a_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    place: Place, pixels: tuple[Samples, Samples], whole: tuple[TrainingResult, Tensors], tmp_path: Path
) -> None:
    params = always_saving(parameters("all", **EVERYTHING))
    Run(place, pixels, params, tmp_path)(tiny_network())
    newest = max(tmp_path.rglob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1])
    run, network = Run(place, pixels, params, tmp_path), tiny_network(seed=9)
    assert run.checkpoints.newest()[0] == 8
    assert_same(run, run(network), network, whole)


# --- faults --------------------------------------------------------------------------------------------


def spoiled(folder: Path, chosen: Sequence[int], value: float) -> tuple[Samples, Samples]:
    array, classes = toy_array()
    array[list(chosen)] = value
    return split(rows(array, folder), classes, mirrored=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_names_the_images_and_changes_no_weight(
    place: Place, tmp_path: Path, value: float, accumulate: int
) -> None:
    params = always_saving(parameters(accumulation_steps=accumulate, label_smoothing=0.1))
    # The last sample of the third batch, so in its last part.
    sample = plan(60, 16, params.train.seed, epoch=0).batches[2][-1]
    row = toy(tmp_path / "whole")[0].rows[sample]
    run, network = Run(place, spoiled(tmp_path, [row], value), params, tmp_path / "run"), tiny_network()
    with pytest.raises(UserError) as caught:
        run(network)
    said = f"the loss is not finite in epoch 0, step 2, on images bin-{row:02}; lower train.lr (0.01) or set train.clip_grad_norm"
    assert str(caught.value) == said
    assert run.checkpoints.newest()[0] == 2
    assert equal(network.head.state_dict(), run.saved()["network"])


def test_of_many_images_without_a_finite_loss_five_are_named(place: Place, tmp_path: Path) -> None:
    run = Run(place, spoiled(tmp_path, range(90), np.nan), parameters(batch_size=20), tmp_path / "run")
    with pytest.raises(UserError, match=r"step 0, on images (bin-\d\d, ){4}bin-\d\d and 15 more; lower"):
        run(tiny_network())


def test_images_whose_loss_is_finite_but_for_the_smoothing_are_named_too(place: Place, tmp_path: Path) -> None:
    samples, network = toy(tmp_path), tiny_network()
    with torch.no_grad():
        # Class 2 has no probability at all: costly to those of class 2, and through the smoothing to all others.
        network.head.get_parameter("2.bias")[2] = -math.inf
    every = Run(place, samples, parameters(batch_size=60, label_smoothing=0.1), tmp_path / "run")
    with pytest.raises(UserError, match=r"on images (bin-\d\d, ){4}bin-\d\d and 55 more"):
        every(network)


class Root(TinyBackbone):
    """Its features have a slope that is not finite, at a value that is."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(1))

    def stages(self) -> list[list[nn.Parameter]]:
        return [*super().stages()[:1], [*super().stages()[1], self.zero]]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + self.zero.sqrt()


def test_a_gradient_that_is_not_finite_is_a_fault_where_gradients_are_measured(place: Place, tmp_path: Path) -> None:
    run = Run(place, toy_pixels(tmp_path), parameters("all", clip_grad_norm=1.0), tmp_path / "run")
    network = tiny_network(backbone=Root)
    parameters_before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(UserError, match=r"^the gradient is not finite in epoch 0, step 0; lower train\.lr \(0\.01\)"):
        run(network)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), parameters_before, strict=True))


class Hungry(TinyBackbone):
    """Asks for more memory than there is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + torch.empty(2**56)


class HungryOnGpu(TinyBackbone):
    """Finds what a GPU without memory says."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Broken(TinyBackbone):
    """Has a fault of its own."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.parametrize("backbone", [Hungry, HungryOnGpu])
def test_memory_that_runs_out_is_a_fault_that_says_what_to_lower(
    place: Place, tmp_path: Path, backbone: type[TinyBackbone]
) -> None:
    run = Run(place, toy_pixels(tmp_path), parameters("all", batch_size=12, accumulation_steps=3), tmp_path / "run")
    with pytest.raises(UserError) as caught:
        run(tiny_network(backbone=backbone))
    remedy = "lower train.batch_size (12) or model.image_size, or raise train.accumulation_steps (3)"
    assert str(caught.value) == f"out of memory on cpu: {remedy}"


def test_another_error_is_not_taken_for_a_lack_of_memory(place: Place, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        Run(place, toy_pixels(tmp_path), parameters("all"), tmp_path / "run")(tiny_network(backbone=Broken))


@pytest.mark.parametrize(("ranks", "accumulate"), [(16, 1), (4, 4)])
def test_more_ranks_and_parts_than_samples_in_a_batch_are_a_fault(
    place: Place, tmp_path: Path, ranks: int, accumulate: int
) -> None:
    # 60 samples in batches of at most 17 are four of 15.
    crowd, params = replace(place, ranks=ranks), parameters(batch_size=17, accumulation_steps=accumulate)
    with pytest.raises(UserError) as caught:
        Run(crowd, toy(tmp_path), params, tmp_path / "run")(tiny_network())
    said = (
        f"{ranks} ranks cannot share batches of 15 samples in {accumulate} parts; lower it, or train.accumulation_steps"
    )
    assert str(caught.value) == f"launch.ranks: {said}"
    # As many as samples are not too many.
    params = parameters(batch_size=17, accumulation_steps=15, epochs=1)
    assert len(Run(place, toy(tmp_path), params, tmp_path / "run")(tiny_network()).history) == 1


def test_more_stages_than_the_backbone_has_are_a_fault(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.trained: 3 is more than the 2 stages this backbone has; take all$"):
        Run(place, toy_pixels(tmp_path), parameters(3), tmp_path / "run")(tiny_network())


def validation_spoiled(folder: Path, value: float) -> tuple[Samples, Samples]:
    return spoiled(folder, [0], value)  # the first row of validation


def test_a_validation_loss_that_overflows_does_not_hide_what_was_learned(place: Place, tmp_path: Path) -> None:
    network = tiny_network()
    start = snapshot(network.head)
    fitted = Run(place, validation_spoiled(tmp_path, -1e6), parameters(), tmp_path / "run")(network)
    assert np.isfinite(fitted.best.validation_loss)
    assert not equal(fitted.state, start)


def test_a_validation_loss_that_is_never_finite_is_a_fault(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the validation loss is not finite in any epoch; lower train\.lr \(0\.01\)$"):
        Run(place, validation_spoiled(tmp_path, np.nan), parameters(), tmp_path / "run")(tiny_network())


def test_an_epoch_whose_validation_loss_is_no_number_does_not_hide_later_ones(place: Place, tmp_path: Path) -> None:
    run, network = Run(place, toy(tmp_path), parameters(epochs=3), tmp_path / "run"), tiny_network()

    def spoil(module: nn.Module, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
        return logits if module.training or run.reported else logits * math.nan

    network.head.register_forward_hook(spoil)
    fitted = run(network)
    assert math.isnan(fitted.history[0].validation_loss)
    assert fitted.best == min(fitted.history[1:], key=lambda epoch: epoch.validation_loss)


# --- one process or two --------------------------------------------------------------------------------


# Plain steps: Adam divides by the size of a gradient, and so makes rounding large.
JOINTLY = EVERYTHING | {"optimizer": "sgd", "lr": 1.0, "batch_size": 11, "clip": 0.5}
Outcome = dict[str, Any]


def joint_run(place: Place, folder: Path, name: str, key: str = KEY) -> Run:
    """A training from pixels with everything in it; its batches of 10 share badly."""
    samples = toy_pixels(folder / f"data-{place.rank}", number=45)
    return Run(place, samples, parameters("all", **JOINTLY), folder / f"{name}-{place.rank}", key)


def figures(fitted: TrainingResult) -> torch.Tensor:
    return torch.tensor(
        [[e.train_loss, e.train_accuracy, e.validation_loss, e.validation_accuracy] for e in fitted.history]
    )


def fault_of(run: Run) -> str:
    with pytest.raises(UserError) as caught:
        run(tiny_network())
    return str(caught.value)


def train_jointly(place: Place, folder: Path) -> Outcome:
    """Train; train again, stopped within an epoch and resumed from what the other machine has; fail at it."""
    network = tiny_network()
    whole = joint_run(place, folder, "whole")(network)
    result: Outcome = {"state": whole.state, "left": network.state_dict(), "history": figures(whole)}

    run, network, parts = joint_run(place, folder, "stopped"), tiny_network(), count(1)

    def ask() -> None:
        if next(parts) == 9 and place.rank == 1:  # in the fifth step, and of one rank alone
            run.ask()

    before_each_step(network, ask)
    with pytest.raises(Stopped):
        run(network)
    result["stopped"] = run.checkpoints.newest()[0]
    if place.rank == 0:
        run.checkpoints.remove()
    result["resumed"] = joint_run(place, folder, "stopped")(tiny_network(seed=9 + place.rank)).state

    result["other key"] = fault_of(joint_run(place, folder, "other", key=str(place.rank) + KEY[1:]))
    samples = spoiled(folder / f"spoiled-{place.rank}", [7, 40], np.nan)
    result["spoiled"] = fault_of(Run(place, samples, parameters(batch_size=60), folder / "none"))
    return result


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Outcome]:
    """What two processes, each as if on a machine of its own, come to."""
    return both(train_jointly, tmp_path_factory.mktemp("two"), machines=True)


def test_two_processes_train_to_what_one_does(place: Place, tmp_path: Path, two: tuple[Outcome, Outcome]) -> None:
    first, second = two
    assert equal(first["state"], second["state"]) and torch.equal(first["history"], second["history"])
    assert equal(first["left"], first["state"]) and equal(second["left"], first["state"])
    network = tiny_network()
    start = snapshot(network)
    fitted = joint_run(place, tmp_path, "alone")(network)
    torch.testing.assert_close(first["state"], fitted.state, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first["history"], figures(fitted), atol=1e-5, rtol=1e-4)
    # What is compared has been learned, in the backbone too.
    assert fitted.best.epoch == 2
    assert (fitted.state["backbone.lower.0.weight"] - start["backbone.lower.0.weight"]).norm() > 0.1


def test_a_stop_of_one_rank_stops_both_and_either_has_what_the_training_goes_on_from(
    two: tuple[Outcome, Outcome],
) -> None:
    for one in two:
        assert one["stopped"] == 5
        assert equal(one["resumed"], two[0]["state"])


def test_machines_that_do_not_share_parameters_data_and_code_are_a_fault(two: tuple[Outcome, Outcome]) -> None:
    for one in two:
        assert one["other key"].startswith("the machines do not have the same parameters, data and code")


def test_every_rank_names_the_images_of_all(two: tuple[Outcome, Outcome]) -> None:
    for one in two:
        assert "step 0, on images bin-07, bin-40; lower" in one["spoiled"]


def stop_while_validating(place: Place, folder: Path) -> int:
    """Rank 1 alone is asked to stop, in its first validation."""
    run, network = joint_run(place, folder, "run"), tiny_network()
    if place.rank == 1:
        network.head.register_forward_pre_hook(lambda module, _inputs: None if module.training else run.ask())
    with pytest.raises(Stopped):
        run(network)
    return run.checkpoints.newest()[0]


def test_a_stop_of_one_rank_while_they_validate_stops_both(tmp_path: Path) -> None:
    assert both(stop_while_validating, tmp_path, machines=True) == (3, 3)
