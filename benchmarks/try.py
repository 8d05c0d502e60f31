"""Ways to learn the count that docs/results.md compares, most of which are not kept; on a GPU or one thread.

It takes `data/` as `bintally use settings/real.yaml && dvc repro encode` leaves it, and trains and scores a network for
every name; with `--mean` it scores the mean probabilities of networks that were trained before. Metrics are for the
photograph alone, counts 1 to 5, calibrated on validation; they are printed as JSON and kept in exports/try/<name>.json.

    python benchmarks/try.py base
    python benchmarks/try.py light --augment light=0.4 colour=0.16 noise=8 blur=1
    python benchmarks/try.py --mean base base2 base3
"""

import argparse
import io
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional

from bintally import paths
from bintally.bins.images import decode_fetched
from bintally.bins.shards import ShardReader, read_index
from bintally.files import METRIC_DIGITS, read_csv, write_json
from bintally.memory import configure_malloc
from bintally.model.backbone import Backbone
from bintally.model.images import squash
from bintally.model.network import EvidenceHead, Head, continuation_ratio_log_probs
from bintally.model.pretrained import load_weights
from bintally.params import Params, Train, load_params
from bintally.resources import default_device
from bintally.scoring.calibration import calibrated, fit_temperature
from bintally.scoring.decoding import DECODINGS
from bintally.scoring.evidence import FEATURES
from bintally.scoring.metrics import LabelledPredictions, evaluate
from bintally.training.augment import Augmentation
from bintally.training.optimizer import make_optimizer, parameter_groups, rate
from bintally.training.samples import Samples, plan, steps_an_epoch
from bintally.training.setup import prepare
from common import say

FOLDER = Path("exports/try")
GREY = 127


def main() -> None:
    arguments = _arguments()
    FOLDER.mkdir(parents=True, exist_ok=True)
    params = load_params()
    for name in arguments.names if not arguments.mean else []:
        torch.set_num_threads(1)
        configure_malloc()
        start = time.monotonic()
        train(params, arguments, FOLDER / name)
        _score(params, [name], name, round(time.monotonic() - start))
    if arguments.mean:
        _score(params, arguments.names, "+".join(arguments.names), None)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--mean", action="store_true", help="score the mean of these networks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=128, help="pixels (default: %(default)s)")
    parser.add_argument("--initial-image-size", type=int, default=96, help="pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--frozen", type=int, default=0, help="number of first stages that stay ImageNet's")
    parser.add_argument(
        "--lr-decay", type=float, default=1.0, help="of the rate of a stage, from the last to the first"
    )
    parser.add_argument("--sam", type=float, default=0.0, help="radius of sharpness-aware minimization")
    parser.add_argument("--head", choices=["pooled", "sum", "both"], default="pooled", help="sum: a map of amounts")
    parser.add_argument("--letterbox", action="store_true", help="keep proportions where the photograph has them")
    parser.add_argument("--augment", nargs="+", default=[], metavar="NAME=VALUE", help="of params.yaml's augment")
    parser.add_argument("--jpeg", type=int, help="lowest quality that half of the images are compressed to")
    parser.add_argument("--mixup", type=float, default=0.0, help="parameter of mixup's beta distribution")
    parser.add_argument("--dropout", type=float, default=0.0, help="before the heads")
    return parser.parse_args()


class AmountHead(nn.Module):
    """Non-negative amounts at every place, summed, and read by ordinal thresholds; ``pooled`` adds the usual head."""

    def __init__(self, channels: int, head: Head, pooled: bool) -> None:
        super().__init__()
        self.pooled = head if pooled else None
        self.amounts = nn.Sequential(nn.Conv2d(channels, 64, 1), nn.ReLU(), nn.Conv2d(64, 1, 1))
        for name, value in ("weight", 0.0), ("bias", -1.5):
            nn.init.constant_(self.amounts[2].get_parameter(name), value)
        self.thresholds = nn.Parameter(torch.arange(head.classes - 1) + 0.5)
        self.slopes = nn.Parameter(torch.ones(head.classes - 1))

    def forward(self, features: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        total = functional.softplus(self.amounts(maps)).sum((1, 2, 3))
        logits = (total[:, None] - self.thresholds) * functional.softplus(self.slopes)
        if self.pooled is not None:
            logits = logits + nn.Sequential.forward(self.pooled, features)
        return continuation_ratio_log_probs(logits)


class Network(nn.Module):
    """A backbone whose first stages may be frozen, and both heads."""

    def __init__(self, arguments: argparse.Namespace, classes: int, hidden: int) -> None:
        super().__init__()
        self.backbone = Backbone(arguments.backbone, arguments.image_size, "every_scale")
        load_weights(self.backbone, arguments.weights)
        width = self.backbone.width
        head = Head(width, hidden, classes, True, arguments.seed)
        self.adds_up = arguments.head != "pooled"
        last = self._last_map(torch.zeros(1, 3, 64, 64))[0].shape[1]
        self.head: nn.Module = AmountHead(last, head, arguments.head == "both") if self.adds_up else head
        self.evidence = EvidenceHead(width, hidden, FEATURES, classes, arguments.seed)
        self.dropout = arguments.dropout
        for stage in list(self.backbone.body)[: arguments.frozen]:
            stage.requires_grad_(False)

    def _last_map(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The last map, and the features."""
        body = list(self.backbone.body)
        maps = ((images - self.backbone.mean) / self.backbone.std).contiguous(memory_format=torch.channels_last)
        means = []
        for stage in body[:-1]:
            maps = stage(maps)
            means.append(maps.mean((2, 3)))
        children = OrderedDict(body[-1].named_children())
        for name, child in list(children.items())[:-2]:  # not the pooling and the flattening
            maps = child(maps)
            del children[name]
        return maps, torch.cat([nn.Sequential(children)(maps), *means], 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps, features = self._last_map(images)
        features = functional.dropout(features, self.dropout, self.training)
        return self.head(features, maps) if self.adds_up else self.head(features), self.evidence(features)


@dataclass(frozen=True)
class Pixels:
    """Photographs, uint8 (bins, 3, size, size)."""

    source: Any
    jpeg: int | None = None

    def take(self, rows: NDArray[np.int64], numbers: NDArray[np.int64] | None = None, epoch: int = 0) -> torch.Tensor:
        """Photographs on the device."""
        images = self.source[rows] if isinstance(self.source, np.ndarray) else self.source.take(rows)
        for place, number in enumerate(numbers if self.jpeg and numbers is not None else []):
            random = np.random.default_rng([epoch, int(number), 7])
            if random.random() < 0.5:
                file = io.BytesIO()
                quality = int(random.integers(self.jpeg or 1, 96))
                Image.fromarray(images[place].transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
                images[place] = np.array(Image.open(file)).transpose(2, 0, 1)
        return torch.from_numpy(images).to(default_device())


def _letterboxed(size: int) -> NDArray[np.uint8]:
    """Photographs within a grey square, those that were fetched as squares squashed as they are."""
    reader, entries = ShardReader(paths.BINS), read_index(paths.BINS)
    images = np.full((len(entries), 3, size, size), GREY, np.uint8)
    for number, entry in enumerate(entries):
        image = decode_fetched(reader.image(entry), entry.id)
        longer = max(image.size)
        width, height = (round(side * size / longer) for side in image.size)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (size - width) // 2, (size - height) // 2
        pixels = squash(image, size).numpy() if width == height else np.array(resized).transpose(2, 0, 1)
        images[number, :, top : top + height, left : left + width] = pixels
    return images


def train(params: Params, arguments: argparse.Namespace, target: Path) -> None:
    """Train a network and write its weights and its log-probabilities of every bin that it has not learned from."""
    augment = {name: float(value) for name, value in (word.split("=") for word in arguments.augment)}
    options = {"seed": arguments.seed, "lr": arguments.lr, "batch_size": arguments.batch_size}
    params = params.model_copy(
        update={
            "train": params.train.model_copy(update=options | {"epochs": arguments.epochs}),
            "augment": params.augment.model_copy(update=augment),
        }
    )
    settings, epochs, device = params.train, arguments.epochs, default_device()
    setup = prepare(params)
    torch.manual_seed(settings.seed)
    network = Network(arguments, len(params.model_counts), settings.hidden).to(device)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = _parameter_groups(network, settings, arguments.lr_decay)
    optimizer = make_optimizer(groups, settings)
    factors = [float(str(group.pop("factor"))) for group in groups]
    source = _letterboxed(arguments.image_size) if arguments.letterbox else setup.encoded.rows
    pixels, size = Pixels(source, arguments.jpeg), source.shape[-1]
    augmentation = Augmentation(params.augment, size, settings.seed, device)
    samples, lists = setup.train, setup.train.lists
    assert lists
    averaged: dict[str, torch.Tensor] = {}
    features, prior, classes = (
        torch.from_numpy(values).to(device) for values in (lists.features, lists.log_prior, samples.classes)
    )
    bfloat16 = partial(torch.autocast, device.type, torch.bfloat16, enabled=arguments.bfloat16)
    steps = steps_an_epoch(len(samples.rows), settings.batch_size)
    done = 0
    with ThreadPoolExecutor(1) as pool:
        for epoch in range(epochs):
            network.train()
            side = _side(epoch, arguments)
            planned = plan(len(samples.rows), settings.batch_size, settings.seed, epoch)
            following = _read(pool, pixels, samples, planned.batches[0], epoch)
            flips, draws = (torch.from_numpy(values).to(device) for values in (planned.flip, planned.draws))
            loss_sum = torch.zeros((), device=device)
            for number, batch in enumerate(planned.batches):
                images = following.result()
                if number + 1 < steps:
                    following = _read(pool, pixels, samples, planned.batches[number + 1], epoch)
                chosen = torch.from_numpy(batch).to(device)
                flip = flips[chosen][:, None, None, None]
                images = augmentation(torch.where(flip, images.flip(3), images), draws[chosen], side)
                targets = classes[chosen]
                share, other = 1.0, torch.arange(len(batch), device=device)
                if arguments.mixup:
                    share = np.random.default_rng([settings.seed, done]).beta(arguments.mixup, arguments.mixup)
                    other = torch.randperm(len(batch)).to(device)
                    images = share * images + (1 - share) * images[other]

                def backward() -> torch.Tensor:
                    with bfloat16():
                        outputs, tables = (output.float() for output in network(images))  # noqa: B023
                    smoothed = partial(functional.cross_entropy, outputs, label_smoothing=settings.label_smoothing)
                    loss = share * smoothed(targets) + (1 - share) * smoothed(targets[other])  # noqa: B023
                    if not arguments.mixup:
                        evidence = torch.einsum("nf,nfc->nc", features[chosen], tables)  # noqa: B023
                        loss = loss + functional.cross_entropy(prior[chosen] + evidence, targets)  # noqa: B023
                    optimizer.zero_grad()
                    loss.backward()
                    return loss.detach()

                loss = backward()
                if arguments.sam:
                    _at_the_worst_neighbour(trained, arguments.sam, backward)
                for group, factor in zip(optimizer.param_groups, factors, strict=True):
                    group["lr"] = settings.lr * factor * rate(settings, done, steps * epochs)
                nn.utils.clip_grad_norm_(trained, settings.clip_grad_norm or math.inf)
                optimizer.step()
                done += 1
                loss_sum += loss
                _average(averaged, network, min(settings.ema_decay, (1 + done) / (10 + done)))
            say(f"epoch {epoch}, {side} pixels: loss {loss_sum.item() / steps:.3f}")
    network.load_state_dict({**network.state_dict(), **averaged})
    torch.save(network.state_dict(), target.with_suffix(".pt"))
    outputs = np.full((len(setup.splits), len(params.model_counts)), np.nan, np.float32)
    rows = np.flatnonzero(setup.splits != "train")
    with torch.inference_mode(), bfloat16():
        network.eval()
        for some in np.array_split(rows, len(rows) // 64):
            images = pixels.take(some).float()
            if size != arguments.image_size:
                images = functional.interpolate(images, (arguments.image_size,) * 2, mode="bilinear", antialias=True)
            views = torch.stack([network(view)[0].float().log_softmax(1) for view in (images, images.flip(3))])
            outputs[some] = (views.logsumexp(0) - math.log(2)).cpu()
    np.save(target.with_suffix(".npy"), outputs)


def _parameter_groups(network: Network, settings: Train, decay: float) -> list[dict[str, Any]]:
    """Groups as the pipeline has them, of every stage and of the heads, each with a factor of its learning rate."""
    stages = [list(stage.parameters()) for stage in network.backbone.body]
    known = {id(parameter) for stage in stages for parameter in stage}
    stages.append([parameter for parameter in network.parameters() if id(parameter) not in known])
    groups: list[dict[str, Any]] = []
    for number, stage in enumerate(stages):
        trained = [parameter for parameter in stage if parameter.requires_grad]
        factor = decay ** (len(stages) - 1 - number)
        groups += [group | {"factor": factor} for group in parameter_groups(trained, settings) if group["params"]]
    return groups


@torch.no_grad()
def _at_the_worst_neighbour(trained: list[nn.Parameter], radius: float, backward: Callable[[], torch.Tensor]) -> None:
    """Leave the gradient of the point ``radius`` up the present one (Foret and others 2021)."""
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    scale = radius / (nn.utils.get_total_norm(gradients) + 1e-12)
    steps = [gradient * scale for gradient in gradients]
    moved: list[torch.Tensor] = [parameter for parameter in trained if parameter.grad is not None]
    torch._foreach_add_(moved, steps)
    with torch.enable_grad():
        backward()
    torch._foreach_add_(moved, steps, alpha=-1)


def _read(
    pool: ThreadPoolExecutor, pixels: Pixels, samples: Samples, batch: NDArray[np.int64], epoch: int
) -> "Future[torch.Tensor]":
    return pool.submit(pixels.take, samples.rows[batch], batch, epoch)


def _side(epoch: int, arguments: argparse.Namespace) -> int:
    """Side of an epoch's images, as :mod:`bintally.training.loop` has it."""
    grown = epoch / (2 / 3 * arguments.epochs)
    last: int = arguments.image_size
    first = min(arguments.initial_image_size, last)
    return last if grown >= 1 else min(last, first + round(grown * (last - first) / 32) * 32)


def _average(averaged: dict[str, torch.Tensor], network: nn.Module, decay: float) -> None:
    current = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    if averaged:
        torch._foreach_lerp_([*averaged.values()], [*current.values()], 1 - decay)
    else:
        averaged.update({name: value.clone() for name, value in current.items()})


def _score(params: Params, names: list[str], target: str, seconds: int | None) -> None:
    """Print and write the metrics of networks' mean probabilities."""
    outputs = np.log(np.mean([np.exp(np.load(FOLDER / f"{name}.npy")) for name in names], 0))
    counts, table = params.answer_counts, read_csv(paths.SPLITS)
    metrics: dict[str, Any] = {"seconds": seconds}
    temperature = 1.0
    for split in ("validation", "test"):
        rows = [at for at, row in enumerate(table) if row["split"] == split and int(row["count"]) in counts]
        truth = np.array([int(table[row]["count"]) for row in rows])
        some = outputs[rows]
        if split == "validation":
            answered = np.searchsorted(params.model_counts, counts)
            temperature = fit_temperature(some[:, answered], np.searchsorted(counts, truth))
        probabilities = calibrated(some, params.model_counts, counts, temperature)
        scored = LabelledPredictions(probabilities, truth, [table[row]["group"] for row in rows], counts)
        metrics[split] = evaluate(scored, params.evaluate.resamples, 1)
    metrics["rmse_decoding"] = min(DECODINGS, key=lambda rule: metrics["validation"][rule]["rmse"])
    write_json(FOLDER / f"{target}.json", metrics, METRIC_DIGITS)
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
