"""The loop learns, goes on where it stopped, and comes to the same in one process as in two.

`python tests/training/test_loop.py FOLDER` is two processes of a tiny training; each leaves what it came to.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bintally.faults import Fault
from bintally.model.network import make_head
from bintally.params import Train
from bintally.training.checkpoint import Checkpoint
from bintally.training.distribution import Place, SharedBatchNorm, joined, share_batch_norm
from bintally.training.loop import Epoch, Fit, Samples, batches, fit

PARAMS = Train(hidden=16, lr=0.01, batch_size=16, epochs=5, seed=1)
KEY = "0123456789abcdef0123456789abcdef"
Tensors = dict[str, torch.Tensor]


def toy(mirrored: bool = True, noise: float = 0.3) -> tuple[Samples, Samples]:
    """Features of three classes, two views each, the closer the more ``noise``; every third row is for validation."""
    random = np.random.default_rng(0)
    classes = random.integers(0, 3, 90)
    centres = random.normal(size=(3, 8))
    array = (centres[classes][:, None] + random.normal(scale=noise, size=(90, 2, 8))).astype(np.float32)
    rows = np.arange(90)
    train, validation = rows[rows % 3 > 0], rows[rows % 3 == 0]
    return (
        Samples(array, train, classes[train], mirrored),
        Samples(array, validation, classes[validation], mirrored),
    )


def toy_pixels() -> tuple[Samples, Samples]:
    """Pixels of three classes, told apart by which colour is bright."""
    train, validation = toy()
    random = np.random.default_rng(1)
    array = random.integers(0, 120, (90, 3, 6, 6), dtype=np.uint8)
    for samples in (train, validation):
        array[samples.rows, samples.classes] += 60
    return replace(train, array=array), replace(validation, array=array)


class TinyNetwork(nn.Module):
    """Learns from pixels, with a batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(
            # No bias, as before any batch normalisation: its gradient would be rounding alone, which Adam scales up.
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.float() / 255)  # type: ignore[no-any-return]


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The environment torchrun gives to a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A process that trains alone."""
    for name, value in environment(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)
    with joined() as alone:
        yield alone


def head() -> nn.Sequential:
    return make_head(8, PARAMS.hidden, 3, seed=1)


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "size"), [(100, 32), (97, 32), (64, 32), (5, 32), (33, 32), (7, 1)])
def test_an_epoch_takes_every_sample_once_in_even_batches_no_larger_than_asked(samples: int, size: int) -> None:
    epoch = batches(samples, size, seed=1, epoch=0)
    assert sorted(np.concatenate([chosen for chosen, _ in epoch]).tolist()) == list(range(samples))
    sizes = [len(chosen) for chosen, _ in epoch]
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-samples // size)
    assert [len(flip) for _, flip in epoch] == sizes


def test_batches_are_drawn_anew_by_seed_and_by_epoch() -> None:
    def drawn(seed: int, epoch: int) -> list[tuple[list[int], list[bool]]]:
        return [(chosen.tolist(), flip.tolist()) for chosen, flip in batches(200, 50, seed, epoch)]

    assert drawn(1, 0) == drawn(1, 0)
    assert len({repr(drawn(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    assert 70 < sum(sum(flip) for _, flip in drawn(1, 0)) < 130


def test_a_view_is_mirrored_where_asked_from_features_and_from_pixels_alike() -> None:
    cpu, chosen, flip = torch.device("cpu"), np.array([3, 1, 2]), np.array([True, False, True])
    features, pixels = toy()[0], toy_pixels()[0]
    rows = features.rows[chosen]
    got = features.one_view(chosen, flip, cpu).numpy()
    np.testing.assert_array_equal(got, features.array[rows, [1, 0, 1]])
    got = pixels.one_view(chosen, flip, cpu).numpy()
    expected = np.stack([pixels.array[rows[0], :, :, ::-1], pixels.array[rows[1]], pixels.array[rows[2], :, :, ::-1]])
    np.testing.assert_array_equal(got, expected)
    both = pixels.all_views(chosen, cpu).numpy()
    np.testing.assert_array_equal(both[:, 0], pixels.array[rows])
    np.testing.assert_array_equal(both[:, 1], pixels.array[rows][..., ::-1])
    assert replace(pixels, mirrored=False).all_views(chosen, cpu).shape == (3, 1, 3, 6, 6)
    assert pixels.targets(chosen, cpu).tolist() == pixels.classes[chosen].tolist()


# --- fit -----------------------------------------------------------------------------------------------


def test_it_learns_and_keeps_the_epoch_with_the_least_validation_loss(place: Place, tmp_path: Path) -> None:
    reported: list[Epoch] = []
    # So fast that the validation loss rises again.
    params = PARAMS.model_copy(update={"epochs": 12, "lr": 0.3})
    network, (train, validation) = head(), toy(noise=1.0)
    fitted = fit(network, train, validation, params, place, Checkpoint(tmp_path, KEY), reported.append)
    assert [epoch.epoch for epoch in reported] == list(range(12))
    assert reported == fitted.history
    losses = [epoch.validation_loss for epoch in reported]
    assert fitted.best == reported[int(np.argmin(losses))] != reported[-1]
    assert fitted.best.validation_accuracy > 0.95

    network.load_state_dict(fitted.state)
    with torch.no_grad():
        inputs = torch.from_numpy(validation.array[validation.rows])
        probability = network.cpu()(inputs.flatten(0, 1)).softmax(1).unflatten(0, (30, 2)).mean(1)
    loss = nn.functional.nll_loss(probability.log(), torch.from_numpy(validation.classes))
    assert float(loss) == pytest.approx(fitted.best.validation_loss, rel=1e-4)
    accuracy = (probability.argmax(1).numpy() == validation.classes).mean()
    assert float(accuracy) == pytest.approx(fitted.best.validation_accuracy)


def test_features_of_one_view_are_enough_without_mirroring(place: Place, tmp_path: Path) -> None:
    train, validation = (replace(samples, array=samples.array[:, :1]) for samples in toy(mirrored=False))
    fitted = fit(head(), train, validation, PARAMS, place, Checkpoint(tmp_path, KEY), lambda _epoch: None)
    assert fitted.best.validation_accuracy > 0.8


@pytest.mark.parametrize("last", [0, 2, 4])
def test_an_interrupted_training_comes_to_the_identical_state(place: Place, tmp_path: Path, last: int) -> None:
    train, validation = toy()
    seen: list[Epoch] = []

    def interrupted(epoch: Epoch) -> None:
        seen.append(epoch)
        if epoch.epoch == last:
            raise KeyboardInterrupt

    def run(name: str, checkpoint: Checkpoint | None = None) -> tuple[Fit, Tensors]:
        network = head()
        checkpoint = checkpoint or Checkpoint(tmp_path / name, KEY)
        fitted = fit(network, train, validation, PARAMS, place, checkpoint, seen.append)
        return fitted, network.state_dict()

    whole, whole_state = run("whole")
    seen.clear()
    checkpoint = Checkpoint(tmp_path / "interrupted", KEY)
    with pytest.raises(KeyboardInterrupt):
        fit(head(), train, validation, PARAMS, place, checkpoint, interrupted)
    assert [epoch.epoch for epoch in seen] == list(range(last + 1))
    seen.clear()
    resumed, resumed_state = run("interrupted", checkpoint)
    assert seen == resumed.history == whole.history
    assert resumed.best == whole.best
    assert equal(resumed.state, whole.state) and equal(resumed_state, whole_state)
    checkpoint.remove()
    assert list((tmp_path / "interrupted").iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_a_fault(place: Place, tmp_path: Path, value: float) -> None:
    train, validation = toy()
    train.array[train.rows[0]] = value
    with pytest.raises(Fault, match=r"loss is not finite in epoch 0, step \d+; lower train\.lr \(0\.01\)"):
        fit(head(), train, validation, PARAMS, place, Checkpoint(tmp_path, KEY), lambda _epoch: None)


def test_a_validation_loss_that_overflows_does_not_hide_what_was_learned(place: Place, tmp_path: Path) -> None:
    train, validation = toy()
    outlier = Samples(train.array.copy(), validation.rows, validation.classes, True)
    outlier.array[validation.rows[0]] *= -1e4
    network = head()
    start = {key: value.clone() for key, value in network.state_dict().items()}
    fitted = fit(network, train, outlier, PARAMS, place, Checkpoint(tmp_path, KEY), lambda _epoch: None)
    assert np.isfinite(fitted.best.validation_loss)
    assert not equal(fitted.state, start)


def test_more_ranks_than_samples_in_a_batch_are_a_fault(tmp_path: Path) -> None:
    crowd = Place(0, 16, torch.device("cpu"))
    with pytest.raises(Fault, match=r"launch\.ranks: 16 ranks cannot share batches of 15 samples"):
        fit(head(), *toy(), PARAMS.model_copy(update={"batch_size": 15}), crowd, Checkpoint(tmp_path, KEY), print)


# --- checkpoints ---------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_run_or_damaged_is_a_fault(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, KEY)
    assert checkpoint.load() is None
    checkpoint.save({"history": [1], "network": {"weight": torch.ones(2)}})
    state = checkpoint.load()
    assert state is not None and state.keys() == {"history", "network"}
    assert torch.equal(state["network"]["weight"], torch.ones(2))

    assert Checkpoint(tmp_path, "f" * 32).load() is None
    with pytest.raises(Fault, match=f"checkpoint {tmp_path}.* is of another run; remove it"):
        Checkpoint(tmp_path, KEY[:-1] + "0").load()
    (path,) = tmp_path.rglob("*.pt")
    for damaged in (b"", path.read_bytes()[:-100]):
        path.write_bytes(damaged)
        with pytest.raises(Fault, match=f"checkpoint {path} is damaged; remove it"):
            checkpoint.load()


# --- one process or two --------------------------------------------------------------------------------


def whole_batch() -> torch.Tensor:
    """Seven images of three channels: more on the first of two ranks than on the second, and unlike those."""
    batch = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(2)) * 2 + 1
    batch[:4] += 3
    return batch


def normalised(norm: nn.BatchNorm2d, images: torch.Tensor) -> Tensors:
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
    tensors |= {f"its {name}": buffer for name, buffer in norm.named_buffers() if name.startswith("running")}
    tensors["outputs in use"] = norm.eval()(whole_batch().to(images.device))
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def share_normalised(place: Place) -> Tensors:
    """What a rank comes to with its share of the batch."""
    mine = np.array_split(np.arange(7), place.ranks)[place.rank]
    return normalised(SharedBatchNorm(3).to(place.device), whole_batch()[mine].to(place.device))


def trained(place: Place, folder: Path) -> Tensors:
    """History and weights of a training from pixels with batch normalisation; its batches of 6 and 7 share badly."""
    network = TinyNetwork()
    share_batch_norm(network)
    params = PARAMS.model_copy(update={"batch_size": 7, "epochs": 3})
    train, validation = toy_pixels()
    fitted = fit(network, train, validation, params, place, Checkpoint(folder, KEY), lambda _epoch: None)
    figures = [[e.train_loss, e.train_accuracy, e.validation_loss, e.validation_accuracy] for e in fitted.history]
    state = {key: value.cpu() for key, value in network.state_dict().items()}
    return {"history": torch.tensor(figures), **state}


def one_of_two(rank: int, port: int, folder: Path) -> None:
    os.environ |= environment(rank, 2, port)
    with joined() as place:
        outcome = {"normalised": share_normalised(place), "trained": trained(place, folder / "checkpoint")}
        torch.save(outcome, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensors]]:
    """What each of two processes comes to."""
    folder = tmp_path_factory.mktemp("two")
    subprocess.run([sys.executable, __file__, str(folder)], check=True, timeout=120)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_batch_statistics_are_those_of_the_whole_batch(place: Place, two: list[dict[str, Tensors]]) -> None:
    expected = normalised(nn.BatchNorm2d(3), whole_batch())
    assert len(expected) == 7
    first, second = (outcome["normalised"] for outcome in two)
    joint = dict(first)
    for name in ("outputs", "inputs' gradient"):
        joint[name] = torch.cat([first[name], second[name]])
    for name in ("weight's gradient", "bias's gradient"):
        joint[name] = first[name] + second[name]
    torch.testing.assert_close(share_normalised(place), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(joint, expected, atol=1e-5, rtol=1e-4)


def test_two_processes_train_to_what_one_does(place: Place, tmp_path: Path, two: list[dict[str, Tensors]]) -> None:
    first, second = (outcome["trained"] for outcome in two)
    assert equal(first, second)
    alone = trained(place, tmp_path)
    torch.testing.assert_close(first, alone, atol=1e-4, rtol=1e-3)
    assert alone["history"][-1, 3] > 0.6


if __name__ == "__main__":
    # Forked where nothing has run yet but all is imported: optimizers import this one, for seconds.
    import torch._dynamo

    port, target = free_port(), Path(sys.argv[1])
    processes = [multiprocessing.get_context("fork").Process(target=one_of_two, args=(r, port, target)) for r in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
