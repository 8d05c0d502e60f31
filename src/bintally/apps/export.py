"""`bintally export`: the model as files that run without this project, compared with it on bins of the data."""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bintally import paths
from bintally.apps.arguments import require_outs
from bintally.errors import UserError, printable
from bintally.files import check_writable

if TYPE_CHECKING:
    import torch

IMAGES = 500


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=Path, default=Path("exports"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--format", choices=["onnx", "torch", "both"], default="both", help="default: %(default)s")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Export the model of the last `dvc repro` and print how far each file is from it.

    Raises UserError if model or data are missing, or if a file cannot be written or differs from the model.
    """
    from bintally.bins.shards import ShardReader, read_index
    from bintally.inference.export import FILES, export
    from bintally.memory import configure_malloc
    from bintally.model.card import load_model
    from bintally.model.encoding import BATCH, decoded_batches
    from bintally.model.images import decode_bin
    from bintally.progress import progress
    from bintally.scoring.calibration import load_calibration
    from bintally.scoring.record_model import load_record_model

    require_outs(paths.MODELS / "card.json", paths.BINS / "index.csv")
    configure_malloc()
    network, card = load_model(paths.MODELS)
    calibration, records = load_calibration(paths.MODELS), load_record_model(paths.MODELS)
    entries = read_index(paths.BINS)
    chosen = entries[:: max(1, len(entries) // IMAGES)][:IMAGES]
    if not chosen:
        raise UserError(f"{paths.BINS} holds no bins to compare on; see {paths.BINS / 'rejected.csv'}")
    formats = list(FILES) if arguments.format == "both" else [arguments.format]
    for name in formats:
        check_writable(arguments.to / FILES[name])
    reader = ShardReader(paths.BINS)

    def batches() -> "Iterator[torch.Tensor]":
        images = [partial(decode_bin, reader, entry, card.image_size) for entry in chosen]
        with progress("compare", len(chosen), "images") as advance:
            for pixels in decoded_batches(images, BATCH["cpu"]):
                yield pixels
                advance(len(pixels))

    differences = export(arguments.to, network, card, calibration, records, formats, batches())
    for path, difference in differences.items():
        print(printable(f"{path}: outputs within {difference:.1e} of the model's on {len(chosen)} images"))
