"""`bintally export`: the model as files that run without this project, checked on bins of the data."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from bintally import paths
from bintally.bins.shards import ShardReader, read_index
from bintally.errors import UserError
from bintally.inference.export import export
from bintally.memory import configure_malloc
from bintally.model.card import load_model
from bintally.model.encoded import BATCH, decoded_batches
from bintally.progress import progress
from bintally.scoring.calibration import load_calibration

IMAGES = 500


def export_model(folder: Path, formats: Sequence[str]) -> None:
    """Write the model of the last `train` to ``folder`` and say how near each file is to it.

    Raises UserError if there is no model or no data, or if a file does not say what the model says.
    """
    for needed in (paths.MODELS / "card.json", paths.BINS / "index.csv"):
        if not needed.is_file():
            raise UserError(f"{needed} is not there: `dvc repro` makes it, `bintally pull` fetches it")
    configure_malloc()
    network, card = load_model(paths.MODELS)
    calibration = load_calibration(paths.MODELS)
    entries = read_index(paths.BINS)
    chosen = entries[:: max(1, len(entries) // IMAGES)][:IMAGES]
    if not chosen:
        raise UserError(f"{paths.BINS} holds no bins to compare on; see {paths.BINS / 'rejected.csv'}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--to: cannot write to {folder}: {error.strerror}") from error
    reader = ShardReader(paths.BINS)

    def batches() -> Iterator[torch.Tensor]:
        reads = [partial(reader.image, entry) for entry in chosen]
        with progress("compare", len(chosen), "images") as advance:
            for pixels in decoded_batches(reads, card.image_size, BATCH["cpu"]):
                yield pixels
                advance(len(pixels))

    for path, difference in export(folder, network, card, calibration, formats, batches()).items():
        print(f"{path}: at most {difference:.1e} from the model's probabilities on {len(chosen)} images")
