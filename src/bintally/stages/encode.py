"""Decode and resize every image, and run the backbone on it if it is frozen, once."""

from functools import partial

import torch

from bintally.bins.shards import ShardReader, read_index
from bintally.bins.trained_on import ENCODED_FILE, photograph_digest, save_digests
from bintally.files import SCRATCH
from bintally.hashing import sha256_hex, source_code
from bintally.memory import configure_malloc
from bintally.model.backbone import Backbone
from bintally.model.encoded import Kind
from bintally.model.encoding import encode
from bintally.model.images import decode_bin
from bintally.model.pretrained import load_weights
from bintally.params import Params
from bintally.paths import BINS, ENCODED
from bintally.resources import default_device
from bintally.stages import run

SEED = 1  # of the weights `none`
# Modules that the array depends on.
CODE = (
    "bins/images.py",
    "model/backbone.py",
    "model/encoding.py",
    "model/images.py",
    "model/pretrained.py",
    "model/views.py",
)


def main(params: Params) -> None:
    configure_malloc()
    model = params.model
    torch.manual_seed(SEED)
    backbone = Backbone(model.backbone, model.image_size, model.features)
    load_weights(backbone, model.weights)
    backbone.trainable_stages(model.trainable)  # says now, not after an hour, if it has fewer
    kind: Kind = "features" if model.trainable == "head" else "pixels"
    reader, entries = ShardReader(BINS), read_index(BINS)
    images = [partial(decode_bin, reader, entry, model.image_size) for entry in entries]
    key = sha256_hex((BINS / "index.csv").read_bytes(), model.model_dump_json().encode(), source_code(*CODE))
    scratch, device = SCRATCH / "encode", default_device()
    encode(ENCODED, images, backbone, model.image_size, kind, model.mirror, device, scratch=scratch, key=key)
    save_digests(ENCODED / ENCODED_FILE, (photograph_digest(reader.image(entry)) for entry in entries))


if __name__ == "__main__":
    run("encode", main)
