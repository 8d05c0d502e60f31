"""Do the constant part of the computation once an image: decode, resize and what of the backbone does not learn."""

from functools import partial

import torch

from bintally.bins.shards import ShardReader, read_index
from bintally.files import SCRATCH
from bintally.hashing import sha256_hex, source_code
from bintally.memory import configure_malloc
from bintally.model.backbone import Backbone
from bintally.model.card import default_device
from bintally.model.encoded import encode
from bintally.model.pretrained import load_weights
from bintally.params import Params
from bintally.paths import BINS, ENCODED
from bintally.stages import run


def main(params: Params) -> None:
    configure_malloc()
    model = params.model
    torch.manual_seed(model.seed)
    backbone = Backbone(model.backbone, model.image_size, model.features)
    load_weights(backbone, model.backbone, model.weights)
    reader = ShardReader(BINS)
    images = [partial(reader.image, entry) for entry in read_index(BINS)]
    encode(
        *(ENCODED, images, backbone, model.image_size, model.trainable, model.mirror, default_device()),
        scratch=SCRATCH / "encode",
        key=sha256_hex((BINS / "index.csv").read_bytes(), model.model_dump_json().encode(), source_code("model")),
    )


if __name__ == "__main__":
    run("encode", main)
