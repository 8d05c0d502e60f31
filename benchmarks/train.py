"""Training speed of this engine, its upper bound, the study's method and PyTorch's ImageNet example.

Every contender runs in its own process on the same rendered bins, one after the other, so that its peak memory is its
own (resident on a CPU, allocated on a GPU). All have the same network, image size and batch size; the head that reads
photographs with lists of products is trained by the engine and its ceiling alone.

engine      encoded arrays by memory map, uint8 to the device, mirrored and augmented there, checkpoints, validation
ceiling     the bare step, of both heads, on batches of a tensor in memory (on a GPU: its own), the bare validation
study       ImageFolder, PIL transforms (resize, mirror), DataLoader, Adam; a frozen backbone runs in every epoch
imagenet    ImageFolder, PIL transforms (random crop, mirror), DataLoader, SGD, as PyTorch's ImageNet example has them

`full` trains the whole network. `stages` trains the last three stages of five, and is compared with the engine that
trains the whole network. `frozen` trains the head from features. The study runs the backbone in
every epoch, the engine once: both are compared over `--frozen-epochs` epochs, few of which are measured. The engine and
its ceiling are compared on HEAD_BINS bins of random numbers. The fastest epoch of `--rounds` runs counts; contenders
take turns. `scaling` compares one rank with two. `growth` shows how seconds and peak memory of encoding and of an epoch
grow with the number of bins.

    python benchmarks/train.py                                         two cores: about fifteen minutes
    python benchmarks/train.py --only full --backbone resnet50 --image-size 224 --batch-size 256 --bins 8192   a GPU
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bintally.apps.seaweedfs import free_ports
from bintally.bins.shards import ShardReader, read_index, write_shards
from bintally.distributed.process_group import RankContext, process_group
from bintally.interruption import StopRequest
from bintally.memory import configure_malloc
from bintally.model.backbone import IMAGENET_MEAN, IMAGENET_STD, LITE, LITE_MEAN, LITE_STD, Backbone
from bintally.model.encoded import Kind, MemoryMappedRows
from bintally.model.encoding import encode
from bintally.model.images import decode_bin
from bintally.model.network import CountingNetwork, EvidenceHead, Head, predict_views
from bintally.model.pretrained import load_weights
from bintally.model.views import stack_views
from bintally.params import Params, load_params
from bintally.resources import default_device
from bintally.scoring.evidence import FEATURES
from bintally.training.checkpoint import Checkpoints
from bintally.training.lists import ListInputs
from bintally.training.loop import fit
from bintally.training.samples import Samples
from common import ROOT, make_bins, report, rounded, say, timed

PARTS = ("frozen", "stages", "full", "scaling", "growth")
# The kind of the cached rows, and `model.trainable`.
TRAINABLE: dict[str, tuple[Kind, str | int]] = {
    "full": ("pixels", "all"),
    "stages": ("pixels", 3),
    "frozen": ("features", "head"),
}
VALIDATION = 64
HEAD_BINS = 8_000
IMAGE_BYTES = 20_000
Figures = dict[str, float]


def main() -> None:
    arguments = _arguments()
    if arguments.contender:
        if arguments.contender.startswith(("encode", "engine", "ceiling")):
            configure_malloc()
        print(json.dumps(CONTENDERS[arguments.contender](arguments) | {"peak_bytes": _peak()}))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bintally-train-") as name:
        arguments.folder = Path(name)
        if set(arguments.only) != {"growth"}:
            say(f"rendering {arguments.bins + VALIDATION} bins")
            _write_bins(arguments.folder, arguments.bins + VALIDATION)
        for part in arguments.only:
            figures[part] = globals()[f"_{part}"](arguments)
    packages = ["torch", "torchvision", "pillow", "efficientnet-lite-pytorch"]
    parameters = {key: value for key, value in vars(arguments).items() if key not in ("folder", "contender", "ranks")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    report("train", parameters | {"device": device}, figures, packages)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (default: all)")
    parser.add_argument("--backbone", default=LITE[0], help="default: %(default)s")
    parser.add_argument("--image-size", type=int, default=128, help="pixels (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--bins", type=int, default=384, help="to train on (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each of a pair (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="timed ones, after one to warm up (default: %(default)s)")
    parser.add_argument("--frozen-epochs", type=int, default=10, help="of the frozen part (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="of a DataLoader")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="bins of the growth")
    parser.add_argument("--growth-image-size", type=int, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


# --- the parts -----------------------------------------------------------------------------------------------


def _full(arguments: argparse.Namespace) -> dict[str, Any]:
    _run(arguments, "encode-full")
    best = _in_turn(arguments, ["engine-full", "ceiling-full", "study-full", "imagenet-full"])
    return _compared(best, arguments.bins)


def _stages(arguments: argparse.Namespace) -> dict[str, Any]:
    _run(arguments, "encode-full")
    best = _in_turn(arguments, ["engine-stages", "engine-full"])
    stages, full = best["engine-stages"], best["engine-full"]
    return {
        "stages_images_per_second": rounded(arguments.bins / stages["epoch"]),
        "stages_peak_mib": round(stages["peak_bytes"] / 2**20),
        "full_images_per_second": rounded(arguments.bins / full["epoch"]),
        "full_peak_mib": round(full["peak_bytes"] / 2**20),
        "stages_times_as_fast_as_full": rounded(full["epoch"] / stages["epoch"]),
    }


def _frozen(arguments: argparse.Namespace) -> dict[str, Any]:
    encoding = _run(arguments, "encode-frozen")
    engine, study = _run(arguments, "engine-frozen"), _run(arguments, "study-frozen")
    whole = encoding["seconds"] + engine["epoch"] * arguments.frozen_epochs
    plain = study["epoch"] * arguments.frozen_epochs
    width = MemoryMappedRows(arguments.folder / "features/array.npy").shape[-1]
    many = argparse.Namespace(
        **vars(arguments) | {"folder": arguments.folder / "many", "bins": HEAD_BINS, "epochs": 10, "batch_size": 64}
    )
    _write_random(many.folder, HEAD_BINS + VALIDATION, width)
    best = _in_turn(many, ["engine-frozen", "ceiling-frozen"])
    return _compared(best, HEAD_BINS) | {
        "encoding_s": rounded(encoding["seconds"]),
        "engine_with_encoding_s": rounded(whole),
        "study_s": rounded(plain),
        "study_peak_mib": round(study["peak_bytes"] / 2**20),
        "engine_with_encoding_times_as_fast_as_study": rounded(plain / whole),
    }


def _scaling(arguments: argparse.Namespace) -> dict[str, Any]:
    for kind in ("full", "frozen"):
        _run(arguments, f"encode-{kind}")
    result = {}
    for kind in ("full", "frozen"):
        rates = {ranks: arguments.bins / _run(arguments, f"engine-{kind}", ranks=ranks)["epoch"] for ranks in (1, 2)}
        result[kind] = {f"images_per_second_{ranks}_ranks": rounded(rate) for ranks, rate in rates.items()}
        result[kind]["two_ranks_times_as_fast_as_one"] = rounded(rates[2] / rates[1])
    return result


def _growth(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    result = []
    for size in arguments.sizes:
        folder = arguments.folder / f"growth-{size}"
        write_shards(folder / "bins", make_bins(size, IMAGE_BYTES))
        options = {"folder": folder, "bins": size - VALIDATION, "image_size": arguments.growth_image_size, "epochs": 1}
        small = argparse.Namespace(**vars(arguments) | options)
        encoding, training = _run(small, "encode-frozen"), _run(small, "engine-frozen")
        result.append(
            {
                "bins": size,
                "encode_images_per_second": rounded(size / encoding["seconds"]),
                "encode_peak_mib": round(encoding["peak_bytes"] / 2**20),
                "train_images_per_second": rounded(small.bins / training["epoch"]),
                "train_peak_mib": round(training["peak_bytes"] / 2**20),
                "features_mib": round((folder / "features/array.npy").stat().st_size / 2**20),
            }
        )
    return result


def _compared(best: dict[str, Figures], images: int) -> dict[str, Any]:
    engine = next(iter(best.values()))["epoch"]
    result: dict[str, Any] = {}
    for name, figures in best.items():
        contender = name.split("-")[0]
        result[f"{contender}_images_per_second"] = rounded(images / figures["epoch"])
        result[f"{contender}_peak_mib"] = round(figures["peak_bytes"] / 2**20)
        if contender != "engine":
            result[f"engine_rate_as_a_share_of_{contender}"] = rounded(figures["epoch"] / engine)
    return result


def _in_turn(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Figures]:
    """The run with the fastest epoch of each contender; every round runs them all."""
    runs = [{name: _run(arguments, name) for name in names} for _ in range(arguments.rounds)]
    return {name: min((run[name] for run in runs), key=lambda figures: figures["epoch"]) for name in names}


def _run(arguments: argparse.Namespace, contender: str, ranks: int = 1) -> Figures:
    """Run a contender in its own process; the figures of several ranks are those of the slowest."""
    command = [sys.executable, __file__, "--contender", contender, "--ranks", str(ranks)]
    for name in ("folder", "backbone", "image_size", "batch_size", "bins", "epochs", "workers"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    port = free_ports(1)[0]
    started = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        torchrun = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RESTART_COUNT": "0"}
        variables = {name: str(value) for name, value in place.items()} | torchrun
        threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
        environment = os.environ | variables | {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT / "src")}
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{contender} failed: see above")
    rows = [json.loads(text.splitlines()[-1]) for text in printed]
    figures: Figures = {name: max(row[name] for row in rows) for name in rows[0]}
    seconds = ", ".join(f"{name} {value:.3f} s" for name, value in figures.items() if name != "peak_bytes")
    say(f"{contender}, {ranks} ranks: {seconds}, {figures['peak_bytes'] / 2**20:.0f} MiB")
    return figures


# --- the contenders, each in its own process -----------------------------------------------------------------


def _params(arguments: argparse.Namespace, trainable: str | int) -> Params:
    params = load_params(ROOT / "params.yaml")
    model = params.model.model_copy(
        update={"backbone": arguments.backbone, "image_size": arguments.image_size, "trainable": trainable}
    )
    train = params.train.model_copy(
        update={"batch_size": arguments.batch_size, "epochs": 1 + arguments.epochs, "lr": 0.0001}
    )
    return params.model_copy(update={"model": model, "train": train})


def _network(arguments: argparse.Namespace) -> CountingNetwork:
    backbone = Backbone(arguments.backbone, arguments.image_size, "every_scale")
    load_weights(backbone, "DEFAULT" if arguments.backbone in LITE else "none")
    head = Head(backbone.width, 512, 5, ordinal=False, seed=1)
    return CountingNetwork(backbone, head, EvidenceHead(backbone.width, 512, FEATURES, 5, seed=1))


def _encode(part: str, arguments: argparse.Namespace) -> Figures:
    kind, _ = TRAINABLE[part]
    network = _network(arguments)
    reader = ShardReader(arguments.folder / "bins")
    entries = read_index(arguments.folder / "bins")
    images = [partial(decode_bin, reader, entry, arguments.image_size) for entry in entries]
    with timed(f"encode {len(images)} images to {kind}") as clock:
        options = (arguments.image_size, kind, True, RankContext(0, 1, default_device(), is_main=True))
        encode(
            arguments.folder / kind, images, network.backbone, *options, scratch=arguments.folder / "scratch", key=kind
        )
    return {"seconds": clock.seconds}


def _samples(arguments: argparse.Namespace, part: str) -> tuple[Samples, Samples]:
    kind, _ = TRAINABLE[part]
    rows = MemoryMappedRows(arguments.folder / kind / "array.npy")
    classes = np.arange(arguments.bins + VALIDATION) % 5
    every = np.arange(arguments.bins), np.arange(arguments.bins, len(classes))

    def samples(some: NDArray[np.int64]) -> Samples:
        names = [str(row) for row in some]
        lists = ListInputs(np.ones((len(some), FEATURES), np.float32), np.zeros((len(some), 5), np.float32))
        return Samples(rows, kind, some, classes[some], names, names, True, lists)

    train, validation = map(samples, every)
    return train, validation


def _engine(part: str, arguments: argparse.Namespace) -> Figures:
    """Train and validate as the stage does; the first epoch is not timed."""
    params = _params(arguments, TRAINABLE[part][1])
    network = _network(arguments)
    train, validation = _samples(arguments, part)
    ends: list[float] = []
    with process_group(600) as context:
        checkpoints = Checkpoints(arguments.folder / "checkpoints", "0" * 64, params.launch.checkpoint_s)
        fit(network, train, validation, params, context, checkpoints, StopRequest(), lambda _: ends.append(_now()))
    return {"epoch": min(np.diff(ends), default=0.0)}


def _ceiling(kind: str, arguments: argparse.Namespace) -> Figures:
    device = default_device()
    network = _network(arguments).to(device)
    train, validation = _samples(arguments, kind)
    model = network if kind == "full" else network.heads()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0001, fused=True)
    memory = torch.from_numpy(train.source.take(train.rows)).to(device)
    classes = torch.from_numpy(train.classes).to(device)
    assert train.lists
    lists, priors = (torch.from_numpy(one).to(device) for one in (train.lists.features, train.lists.log_prior))
    held_out = torch.from_numpy(validation.source.take(validation.rows)).to(device)
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()

    def epoch() -> None:
        model.train()
        for chosen in torch.randperm(arguments.bins).to(device).split(arguments.batch_size):
            inputs, targets = memory[chosen, 0] if kind == "frozen" else memory[chosen], classes[chosen]
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                logits, tables = model.outputs(inputs)
            given_products = priors[chosen] + torch.einsum("nf,nfc->nc", lists[chosen], tables.float())
            losses = (nn.functional.cross_entropy(scores, targets) for scores in (logits.float(), given_products))
            sum(losses, torch.zeros((), device=device)).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            predict_views(model, held_out if kind == "frozen" else stack_views(held_out, True))[0].sum().item()

    return _timed_epochs(epoch, arguments.epochs)


def _files(kind: str, arguments: argparse.Namespace) -> Figures:
    """ImageFolder, PIL transforms and a DataLoader, the ImageNet example's or the study's."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    device, size = default_device(), arguments.image_size
    mean, std = (LITE_MEAN, LITE_STD) if arguments.backbone in LITE else (IMAGENET_MEAN, IMAGENET_STD)
    scaled = [transforms.ToTensor(), transforms.Normalize([m / 255 for m in mean], [s / 255 for s in std])]
    resize = transforms.Resize((size, size))
    first = transforms.RandomResizedCrop(size) if kind == "imagenet-full" else resize
    folder = arguments.folder / "images"
    train = ImageFolder(str(folder / "train"), transforms.Compose([first, transforms.RandomHorizontalFlip(), *scaled]))
    held_out = ImageFolder(str(folder / "validation"), transforms.Compose([resize, *scaled]))
    options: dict[str, Any] = {"num_workers": arguments.workers, "pin_memory": device.type == "cuda"}
    loader = DataLoader(train, arguments.batch_size, shuffle=True, **options)
    check = DataLoader(held_out, arguments.batch_size, **options)

    wrapped = _network(arguments).backbone
    # Without the normalisation and the means of the scales, and in torch's default layout.
    backbone = wrapped.body.to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    width = backbone.eval()(torch.zeros(1, 3, size, size, device=device)).shape[1]
    head = Head(width, 512, 5, ordinal=False, seed=1).to(device)
    frozen = kind == "study-frozen"
    trainable = [*head.parameters()] if frozen else [*backbone.parameters(), *head.parameters()]
    if kind == "imagenet-full":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(trainable, lr=0.0001, momentum=0.9, weight_decay=1e-4)
    else:
        optimizer = torch.optim.Adam(trainable, lr=0.0001)

    def logits(images: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = backbone(images.to(device, non_blocking=True))
        return head(features)  # type: ignore[no-any-return]

    def epoch() -> None:
        backbone.train(not frozen)
        for images, classes in loader:
            loss = nn.functional.cross_entropy(logits(images), classes.to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        backbone.eval()
        with torch.no_grad():
            for images, classes in check:
                (logits(images).argmax(1).cpu() == classes).sum().item()

    return _timed_epochs(epoch, arguments.epochs)


CONTENDERS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    **{f"encode-{kind}": partial(_encode, kind) for kind in TRAINABLE},
    **{f"engine-{kind}": partial(_engine, kind) for kind in TRAINABLE},
    **{f"ceiling-{kind}": partial(_ceiling, kind) for kind in ("full", "frozen")},
    **{kind: partial(_files, kind) for kind in ("study-full", "study-frozen", "imagenet-full")},
}


def _timed_epochs(epoch: Callable[[], None], number: int) -> Figures:
    epoch()
    ends = [_now()]
    for _ in range(number):
        epoch()
        ends.append(_now())
    return {"epoch": min(np.diff(ends))}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # getrusage would include the parent's memory before exec.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


# --- bins ----------------------------------------------------------------------------------------------------


def _write_random(folder: Path, number: int, width: int) -> None:
    features = np.random.default_rng(1).standard_normal((number, 2, width), dtype=np.float32)
    (folder / "features").mkdir(parents=True)
    np.save(folder / "features/array.npy", features)


def _write_bins(folder: Path, number: int) -> None:
    """Write the same bins as shards and as files, training before validation."""
    bins = make_bins(number, IMAGE_BYTES)
    write_shards(folder / "bins", bins)
    for at, one in enumerate(bins):
        split = "train" if at < number - VALIDATION else "validation"
        path = folder / "images" / split / str(one.count) / f"{one.id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one.image)


if __name__ == "__main__":
    main()
