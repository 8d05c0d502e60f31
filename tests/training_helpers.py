"""Small data, a tiny network, and processes that train together, for tests of training and diagnosis."""

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

from bintally.distributed.process_group import RankContext, exit_process, process_group
from bintally.errors import UserError
from bintally.model.backbone import Backbone
from bintally.model.encoded import Kind, MemoryMappedRows
from bintally.model.network import CountingNetwork, EvidenceHead, Head
from bintally.params import Params, load_params
from bintally.training.lists import ListInputs
from bintally.training.samples import Samples

CPU = torch.device("cpu")
PARAMS = load_params(Path(__file__).parents[1] / "params.yaml")
CLASSES, WIDTH, SIZE, LIST_FEATURES = 3, 8, 12, 2

Tensors = dict[str, torch.Tensor]

TRAIN: dict[str, Any] = {
    "counts": [1, 2, 3],
    "hidden": 16,
    "epochs": 5,
    "batch_size": 16,
    "accumulation_steps": 1,
    "optimizer": "adam",
    "lr": 0.01,
    "schedule": "constant",
    "warmup": 0.0,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "clip_grad_norm": None,
    "label_smoothing": 0.0,
    "ordinal": False,
    "initial_image_size": None,
    "validate_every": 1,
    "ema_decay": 0.0,
    "precision": "float32",
    "compile": False,
    "seed": 1,
}


def make_params(trainable: str | int = "head", augment: dict[str, float] | None = None, **train: Any) -> Params:
    """The repository's parameters, changed to a plain training of a few steps and by ``train``."""
    values = PARAMS.model_dump()
    values["train"] |= TRAIN | train
    values["model"]["trainable"] = trainable
    values["launch"]["ranks"] = 1
    values["augment"] |= augment or {}
    return Params.model_validate(values)


def memory_mapped(array: NDArray[Any], folder: Path) -> MemoryMappedRows:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "array.npy", array)
    return MemoryMappedRows(folder / "array.npy")


def split_samples(source: MemoryMappedRows, classes: NDArray[np.int64], mirrored: bool) -> tuple[Samples, Samples]:
    """Training samples and, of every third row, validation samples; row 7 is named bin-07."""
    every, lists = np.arange(len(classes)), random_lists(len(classes))

    def samples(rows: NDArray[np.int64]) -> Samples:
        names, groups = [f"bin-{row:02}" for row in rows], [f"bin-{row - row % 3 // 2:02}" for row in rows]
        kind: Kind = "features" if len(source.shape) == 3 else "pixels"
        of_rows = ListInputs(lists.features[rows], lists.log_prior[rows])
        return Samples(source, kind, rows, classes[rows], names, groups, mirrored, of_rows)

    return samples(every[every % 3 > 0]), samples(every[every % 3 == 0])


def random_lists(number: int) -> ListInputs:
    """Features, of which one is the same, and frequencies that say nothing of the classes; some are not known."""
    random, known = np.random.default_rng(2), np.arange(number)[:, None] % 4 > 0
    features = np.stack([np.ones(number), random.normal(size=number)], 1) * known
    log_prior = np.log(random.dirichlet(np.ones(CLASSES), number)) * known
    return ListInputs(features.astype(np.float32), log_prior.astype(np.float32))


def feature_array(noise: float = 0.3, mirrored: bool = True) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features of 90 bins, the classes closer with more ``noise``, one or two views of each; and the classes."""
    random = np.random.default_rng(0)
    classes = random.integers(0, CLASSES, 90)
    centres = random.normal(size=(CLASSES, WIDTH))
    array = centres[classes][:, None] + random.normal(scale=noise, size=(90, 1 + mirrored, WIDTH))
    return array.astype(np.float32), classes


def feature_samples(folder: Path, noise: float = 0.3, mirrored: bool = True) -> tuple[Samples, Samples]:
    array, classes = feature_array(noise, mirrored)
    return split_samples(memory_mapped(array, folder), classes, mirrored)


def pixel_samples(folder: Path, number: int = 45) -> tuple[Samples, Samples]:
    """Pixels of three classes, in each of which another colour is bright."""
    random = np.random.default_rng(1)
    classes = random.integers(0, CLASSES, number)
    array = random.integers(0, 120, (number, 3, SIZE, SIZE), dtype=np.uint8)
    array[np.arange(number), classes] += 90
    return split_samples(memory_mapped(array, folder), classes, mirrored=True)


class TinyBackbone(Backbone):
    """A backbone of two stages, each with a batch normalisation; a step takes a millisecond."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.width = WIDTH
        # No bias, as before any batch normalisation: its gradient would be rounding alone.
        self.lower = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.upper = nn.Sequential(nn.Conv2d(4, WIDTH, 3, stride=2, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())

    @property
    def body(self) -> list[nn.Module]:  # type: ignore[override]
        return [self.lower, self.upper]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.upper(self.lower(images.float() / 255))
        return maps.mean((2, 3))


def tiny_network(seed: int = 4, backbone: type[Backbone] = TinyBackbone, ordinal: bool = False) -> CountingNetwork:
    torch.manual_seed(seed)
    create: Callable[[], Backbone] = backbone
    head = Head(WIDTH, TRAIN["hidden"], CLASSES, ordinal, seed)
    return CountingNetwork(create(), head, EvidenceHead(WIDTH, TRAIN["hidden"], LIST_FEATURES, CLASSES, seed))


def copy_state(module: nn.Module) -> Tensors:
    return copy.deepcopy(module.state_dict())


def same_tensors(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# --- processes -----------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, world_size: int, port: int, local_world_size: int) -> dict[str, str]:
    """The variables torchrun sets for a rank, as if each ``local_world_size`` ranks were on a machine of their own."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % local_world_size),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


@contextmanager
def single_rank() -> Iterator[RankContext]:
    """This process as the only rank."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(0, 1, free_port(), 1).items():
            patch.setenv(name, value)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # for so little work, several would only wait for each other
        with process_group(60) as context:
            try:
                yield context
            finally:
                distributed.destroy_process_group()
                torch.set_num_threads(threads)


Work = Callable[[RankContext, Path], object]

# Children are forked from a process that has imported everything and computed nothing: importing takes seconds, and a
# fork of a process that has computed may hang.
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["torch", "torch._dynamo", "pytest", "bintally.training.loop"])


def start_ranks(
    work: Work,
    folder: Path,
    ranks: Sequence[int] = (0, 1),
    timeout_s: float = 60,
    world_size: int = 2,
    local_world_size: int = 2,
) -> list[BaseProcess]:
    """Start ``ranks`` of ``world_size``; each writes the result of ``work``, or its error, to ``folder``."""
    port = free_port()
    children: list[BaseProcess] = [
        _FORKS.Process(
            target=_rank,
            args=(work, folder, timeout_s, rank_environment(rank, world_size, port, local_world_size)),
        )
        for rank in ranks
    ]
    for child in children:
        child.start()
    return children


def _rank(work: Work, folder: Path, timeout_s: float, environment: dict[str, str]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    try:
        with process_group(timeout_s) as context:
            result: object = work(context, folder)
    except (UserError, RuntimeError) as error:
        result = f"{type(error).__name__}: {error}"
    torch.save(result, folder / f"{environment['RANK']}.pt")
    exit_process()


def rank_result(rank: int, folder: Path) -> Any:
    return torch.load(folder / f"{rank}.pt", weights_only=True)


def exit_codes(children: Sequence[BaseProcess]) -> list[int | None]:
    """Wait for processes; one that hangs is killed."""
    for child in children:
        child.join(60)
        if child.is_alive():
            child.kill()
            child.join()
    return [child.exitcode for child in children]


def run_two_ranks(work: Work, folder: Path, machines: bool = False) -> tuple[Any, Any]:
    """The results of ``work`` in each of two processes."""
    assert exit_codes(start_ranks(work, folder, local_world_size=1 if machines else 2)) == [0, 0]
    return rank_result(0, folder), rank_result(1, folder)
