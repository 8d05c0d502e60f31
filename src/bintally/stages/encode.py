"""Do the constant part of the computation once an image: decode, resize and what of the trunk does not learn."""

from functools import partial

import torch

from bintally.bins.shards import ShardReader, read_index
from bintally.files import SCRATCH
from bintally.memory import keep_freed_memory
from bintally.model.encoded import encode
from bintally.model.saved import default_device
from bintally.model.trunk import Trunk
from bintally.model.weights import load_weights
from bintally.params import Params
from bintally.stages import code, hash_of, run
from bintally.stages.paths import BINS, ENCODED


def main(params: Params) -> None:
    keep_freed_memory()
    model = params.model
    torch.manual_seed(model.seed)
    trunk = Trunk(model.trunk, model.image_size, model.features)
    load_weights(trunk, model.trunk, model.weights)
    reader = ShardReader(BINS)
    images = [partial(reader.image, entry) for entry in read_index(BINS)]
    encode(
        *(ENCODED, images, trunk, model.image_size, model.trained, model.mirror, default_device()),
        scratch=SCRATCH / "encode",
        key=hash_of((BINS / "index.csv").read_bytes(), model.model_dump_json().encode(), code("model")),
    )


if __name__ == "__main__":
    run("encode", main)
