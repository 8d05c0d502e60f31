"""The time of `dvc exp run -S train.lr=...` beside that of a plain script that computes everything again.

In a copy of the repository (as in the working tree) that `dvc repro` has brought up to date, `dvc exp run` reuses
the encoded images, so that only the head is trained. The plain script does what the reference study did, on the
same bins, split, backbone and epochs: JPEG files decoded with PIL, resized, mirrored and normalised by two loader
workers, through the frozen backbone without gradients in every epoch, into a head of two layers.

The seconds of `dvc exp run` include DVC, scoring and plots. Of the plain script a few epochs (a pass over training and
one over validation each) are measured, and the fastest is multiplied by `train.epochs`: that figure is extrapolated.

    python benchmarks/experiment.py                     600 demo bins, three to four minutes
    python benchmarks/experiment.py --demo-bins 120     a quick look
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from bintally.bins.shards import ShardReader, read_index
from bintally.files import read_csv
from bintally.model.backbone import LITE, LITE_MEAN, LITE_STD, Backbone
from bintally.model.network import Head
from bintally.model.pretrained import load_weights
from bintally.params import Params, load_params
from bintally.paths import BINS, SPLITS
from bintally.resources import default_device
from common import ROOT, environment, report, rounded, say, timed

WORKERS = 2
RUNNING = re.compile(r"Running stage '([^']+)'")


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="bintally-experiment-") as name:
        project = Path(name) / "project"
        _copy(project, arguments.demo_bins)
        params = load_params(project / "params.yaml")
        if params.model.backbone != LITE[0] or params.model.weights != "DEFAULT" or params.model.trainable != "head":
            raise SystemExit(f"params.yaml: needs a frozen {LITE[0]} with its default weights")

        say("dvc repro")
        with timed("dvc repro") as first:
            stages = _dvc(project, "repro")
        _git(project, "add", "-A")
        _git(project, "commit", "-qm", "Reproduced")
        say(f"dvc exp run -S train.lr={arguments.lr}")
        with timed("dvc exp run") as experiment:
            rerun = _dvc(project, "exp", "run", "-S", f"train.lr={arguments.lr}")
        if "encode" in rerun or "train" not in rerun:
            raise ValueError(f"dvc exp run ran {sorted(rerun)}; it should run train and not encode")

        _write_images(project, Path(name) / "images")
        epochs = _plain(Path(name) / "images", params, arguments.lr, arguments.epochs)

    images = epochs.images
    epoch = min(epochs.seconds)
    plain = epoch * params.train.epochs
    report(
        "experiment",
        vars(arguments)
        | {
            "images": images,
            "epochs": params.train.epochs,
            "batch_size": params.train.batch_size,
            "image_size": params.model.image_size,
            "ranks": params.launch.ranks,
            "loader_workers": WORKERS,
            "device": str(default_device()),
        },
        {
            "first_run_s": rounded(first.seconds),
            "first_run_stages_s": {stage: rounded(seconds) for stage, seconds in stages.items()},
            "exp_run_s": rounded(experiment.seconds),
            "exp_run_stages_s": {stage: rounded(seconds) for stage, seconds in rerun.items()},
            "plain_epoch_s": rounded(epoch),
            "plain_every_epoch_s": [rounded(seconds) for seconds in epochs.seconds],
            "plain_images_per_second": rounded(sum(images.values()) / epoch),
            "plain_s_extrapolated": rounded(plain),
            "exp_run_times_as_fast_as_plain": rounded(plain / experiment.seconds),
            "exp_run_and_encode_times_as_fast_as_plain": rounded(plain / (experiment.seconds + stages["encode"])),
            "exp_run_and_first_run_times_as_fast_as_plain": rounded(plain / (experiment.seconds + first.seconds)),
        },
        ["dvc", "dvclive", "torch", "torchvision", "pillow", "efficientnet-lite-pytorch"],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo-bins", type=int, default=600, help="fetch.demo_bins (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.0037, help="of the experiment (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="of the plain script to measure (default: %(default)s)")
    return parser.parse_args()


def _copy(project: Path, demo_bins: int) -> None:
    """Copy what git tracks or would track from the working tree, without results, and set the number of demo bins."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("metrics/", "plots/")) and name != "dvc.lock":
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).write_bytes((ROOT / name).read_bytes())
    path = project / "params.yaml"
    text, replaced = re.subn(r"(?m)^(  demo_bins: )\d+", rf"\g<1>{demo_bins}", path.read_text(encoding="utf-8"))
    if replaced != 1:
        raise ValueError("params.yaml has no demo_bins to set")
    path.write_text(text, encoding="utf-8")
    _git(project, "init", "-q", "-b", "main")
    _git(project, "add", "-A")
    _git(project, "commit", "-qm", "Copy")


def _git(project: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=project, env=_environment(project), stdout=sys.stderr, check=True)


def _dvc(project: Path, *arguments: str) -> dict[str, float]:
    """Run DVC, repeat its output, and return the seconds of each stage it ran."""
    seconds: dict[str, float] = {}
    stage, start = "", 0.0
    command = [sys.executable, "-m", "dvc", *arguments]
    with subprocess.Popen(
        command, cwd=project, env=_environment(project), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            say("  " + line.rstrip())
            if found := RUNNING.search(line):
                stage, start = found[1], time.perf_counter()
            elif stage and line.startswith(("Updating lock file", "Generating lock file")):
                seconds[stage], stage = time.perf_counter() - start, ""
    if process.returncode:
        raise SystemExit(f"`dvc {' '.join(arguments)}` failed, its reason is above")
    return seconds


def _environment(project: Path) -> dict[str, str]:
    beside = project.parent
    return environment(project / "src", beside / "bytecode", DVC_SITE_CACHE_DIR=str(beside / "dvc-state"))


def _write_images(project: Path, folder: Path) -> None:
    """Write the training and validation bins as files, <split>/<count>/<id>.jpg."""
    reader = ShardReader(project / BINS)
    splits = {row["id"]: row["split"] for row in read_csv(project / SPLITS)}
    for entry in read_index(project / BINS):
        if splits[entry.id] != "test":
            path = folder / splits[entry.id] / str(entry.count) / f"{entry.id}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(reader.image(entry))


@dataclass(frozen=True)
class PlainResult:
    """Number of images by split, and seconds of each epoch."""

    images: dict[str, int]
    seconds: list[float]


def _plain(folder: Path, params: Params, lr: float, epochs: int) -> PlainResult:
    """Train a head on a frozen backbone with an ImageFolder and a DataLoader for `epochs`."""
    torch.manual_seed(params.train.seed)
    size = [params.model.image_size] * 2
    normalised = [
        transforms.ToTensor(),
        transforms.Normalize([value / 255 for value in LITE_MEAN], [value / 255 for value in LITE_STD]),
    ]
    train = ImageFolder(
        str(folder / "train"),
        transforms.Compose([transforms.Resize(size), transforms.RandomHorizontalFlip(), *normalised]),
    )
    validation = ImageFolder(str(folder / "validation"), transforms.Compose([transforms.Resize(size), *normalised]))
    batch = params.train.batch_size
    train_loader = DataLoader(train, batch, shuffle=True, num_workers=WORKERS)
    validation_loader = DataLoader(validation, batch, num_workers=WORKERS)

    device = default_device()
    wrapped = Backbone(LITE[0], params.model.image_size, "last")
    load_weights(wrapped, params.model.weights)
    # Without the normalisation, and in torch's default layout.
    backbone = wrapped.body.to(device, memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    head = Head(wrapped.width, params.train.hidden, len(params.fetch.counts), False, params.train.seed).to(device)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)

    def logits(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = backbone(images.to(device))
        return head(features)  # type: ignore[no-any-return]

    seconds = []
    for number in range(epochs):
        with timed(f"plain epoch {number + 1} of {epochs}") as clock:
            for images, classes in train_loader:
                loss = nn.functional.cross_entropy(logits(images), classes.to(device))
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            right = 0
            with torch.no_grad():
                for images, classes in validation_loader:
                    right += int((logits(images).argmax(1).cpu() == classes).sum())
        say(f"  loss {loss.item():.3f}, validation accuracy {right / len(validation):.3f}")
        seconds.append(clock.seconds)
    return PlainResult({"train": len(train), "validation": len(validation)}, seconds)


if __name__ == "__main__":
    main()
