"""What the tests of training share: toy data, a tiny network, and processes that train together."""

import copy
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from bintally.errors import UserError
from bintally.model.backbone import Backbone
from bintally.model.encoded import Kind, MemoryMappedRows
from bintally.model.network import CountingNetwork, Head
from bintally.params import Params, load_params
from bintally.training.distributed import Place, leave, process_group
from bintally.training.samples import Samples

CPU = torch.device("cpu")
OURS = load_params(Path(__file__).parents[2] / "params.yaml")
CLASSES, WIDTH, SIDE = 3, 8, 12

Tensors = dict[str, torch.Tensor]

TRAIN: dict[str, Any] = {
    "counts": [1, 2, 3],
    "hidden": 16,
    "epochs": 5,
    "head_epochs": 0,
    "batch_size": 16,
    "accumulation_steps": 1,
    "optimizer": "adam",
    "lr": 0.01,
    "layer_decay": 1.0,
    "schedule": "constant",
    "warmup": 0.0,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "clip_grad_norm": None,
    "label_smoothing": 0.0,
    "label_spread": 0.0,
    "ordinal": False,
    "squared_error": 0.0,
    "twins": 0.0,
    "dropout": 0.0,
    "initial_image_size": None,
    "validate_every": 1,
    "ema_decay": 0.0,
    "precision": "float32",
    "compile": False,
    "seed": 1,
}


def parameters(trained: str | int = "head", augment: dict[str, float] | None = None, **train: Any) -> Params:
    """The repository's parameters, but for a plain training of a few steps with ``train`` changed in it."""
    whole = OURS.model_dump()
    whole["train"] |= TRAIN | train
    whole["model"]["trainable"] = trained
    whole["launch"]["ranks"] = 1
    whole["augment"] |= augment or {}
    return Params.model_validate(whole)


def rows(array: NDArray[Any], folder: Path) -> MemoryMappedRows:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "array.npy", array)
    return MemoryMappedRows(folder / "array.npy")


def split(source: MemoryMappedRows, classes: NDArray[np.int64], mirrored: bool) -> tuple[Samples, Samples]:
    """Every third row is for validation, the two between show one bin and are to learn from; row 7 is named bin-07."""
    every = np.arange(len(classes))

    def samples(chosen: NDArray[np.int64]) -> Samples:
        names, groups = [f"bin-{row:02}" for row in chosen], [f"bin-{row - row % 3 // 2:02}" for row in chosen]
        kind: Kind = "features" if len(source.shape) == 3 else "pixels"
        return Samples(source, kind, chosen, classes[chosen], names, groups, mirrored)

    return samples(every[every % 3 > 0]), samples(every[every % 3 == 0])


def toy_array(noise: float = 0.3, mirrored: bool = True) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """90 features of three classes, one or two views of each, the closer the more ``noise``; and the classes."""
    random = np.random.default_rng(0)
    classes = random.integers(0, CLASSES, 90)
    centres = random.normal(size=(CLASSES, WIDTH))
    array = centres[classes][:, None] + random.normal(scale=noise, size=(90, 1 + mirrored, WIDTH))
    return array.astype(np.float32), classes


def toy(folder: Path, noise: float = 0.3, mirrored: bool = True) -> tuple[Samples, Samples]:
    array, classes = toy_array(noise, mirrored)
    return split(rows(array, folder), classes, mirrored)


def toy_pixels(folder: Path, number: int = 45) -> tuple[Samples, Samples]:
    """Pixels of three classes, told apart by which colour is bright."""
    random = np.random.default_rng(1)
    classes = random.integers(0, CLASSES, number)
    array = random.integers(0, 120, (number, 3, SIDE, SIDE), dtype=np.uint8)
    array[np.arange(number), classes] += 90
    return split(rows(array, folder), classes, mirrored=True)


class TinyBackbone(Backbone):
    """A backbone of two stages, each with a batch normalisation, that a step takes a millisecond through."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.width = WIDTH
        # No bias, as before any batch normalisation: its gradient would be rounding alone.
        self.lower = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.upper = nn.Sequential(nn.Conv2d(4, WIDTH, 3, stride=2, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())

    def stages(self) -> list[list[nn.Parameter]]:
        return [list(self.lower.parameters()), list(self.upper.parameters())]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.upper(self.lower(images.float() / 255))
        return maps.mean((2, 3))


def tiny_network(seed: int = 4, backbone: type[Backbone] = TinyBackbone, ordinal: bool = False) -> CountingNetwork:
    torch.manual_seed(seed)
    made: Callable[[], Backbone] = backbone
    return CountingNetwork(made(), Head(WIDTH, TRAIN["hidden"], CLASSES, ordinal, seed))


def snapshot(module: nn.Module) -> Tensors:
    return copy.deepcopy(module.state_dict())


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- processes -----------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, ranks: int, port: int, machines: bool = False) -> dict[str, str]:
    """What torchrun tells a process: one of ``ranks`` on this machine, or each as if on a machine of its own."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(0 if machines else rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(1 if machines else ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@contextmanager
def alone() -> Iterator[Place]:
    """This process as the only one that trains."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(0, 1, free_port()).items():
            patch.setenv(name, value)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # for so little, several only wait for each other
        with process_group(60) as place:
            try:
                yield place
            finally:
                distributed.destroy_process_group()
                torch.set_num_threads(threads)


Work = Callable[[Place, Path], object]

# Children are forked from a process that has imported all and run nothing: importing takes seconds, and a fork of
# one that has computed may hang.
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["torch", "torch._dynamo", "pytest", "bintally.training.loop"])


def start(
    work: Work, folder: Path, ranks: Sequence[int] = (0, 1), timeout_s: float = 60, machines: bool = False
) -> list[BaseProcess]:
    """Start ``ranks`` of two processes; each leaves what ``work`` came to, or what it failed for, in ``folder``."""
    port = free_port()
    children: list[BaseProcess] = [
        _FORKS.Process(target=_rank, args=(work, folder, timeout_s, environment(rank, 2, port, machines)))
        for rank in ranks
    ]
    for child in children:
        child.start()
    return children


def _rank(work: Work, folder: Path, timeout_s: float, told: dict[str, str]) -> None:
    os.environ |= told
    torch.set_num_threads(1)
    try:
        with process_group(timeout_s) as place:
            outcome: object = work(place, folder)
    except (UserError, RuntimeError) as error:
        outcome = f"{type(error).__name__}: {error}"
    torch.save(outcome, folder / f"{told['RANK']}.pt")
    leave()


def outcome(rank: int, folder: Path) -> Any:
    return torch.load(folder / f"{rank}.pt", weights_only=True)


def ended(children: Sequence[BaseProcess]) -> list[int | None]:
    """The exit codes, once they are there; what hangs is killed."""
    for child in children:
        child.join(60)
        if child.is_alive():
            child.kill()
            child.join()
    return [child.exitcode for child in children]


def both(work: Work, folder: Path, machines: bool = False) -> tuple[Any, Any]:
    """What ``work`` comes to in each of two processes."""
    assert ended(start(work, folder, machines=machines)) == [0, 0]
    return outcome(0, folder), outcome(1, folder)
