"""Decode and resize every image, and run the backbone on it if it is frozen, once.

One process encodes where there is no more than one GPU: it uses all cores. Several GPUs of a machine, up to
`launch.ranks`, have a rank each, and `launch.nnodes` machines share the images, started as in train.
"""

from array import array
from collections.abc import Iterator
from functools import partial

import torch

from bintally.bins.shards import ShardReader, read_index
from bintally.bins.trained_on import ENCODED_FILE, photograph_digest, save_digests
from bintally.distributed.process_group import RankContext, process_group, use_deterministic_algorithms
from bintally.distributed.rank import run_as_rank
from bintally.files import SCRATCH
from bintally.hashing import sha256_hex, source_code
from bintally.interruption import StopRequest
from bintally.memory import configure_malloc
from bintally.model.backbone import Backbone
from bintally.model.encoded import Kind
from bintally.model.encoding import encode
from bintally.model.images import decode_bin
from bintally.model.pretrained import load_weights
from bintally.params import Params
from bintally.paths import BINS, ENCODED
from bintally.resources import default_device
from bintally.stages import report_failure, run

SEED = 1  # of the weights `none`
# Modules that the array depends on.
CODE = (
    "bins/images.py",
    "model/backbone.py",
    "model/encoding.py",
    "model/images.py",
    "model/pretrained.py",
    "model/resumable_array.py",
    "model/views.py",
)


def ranks_here(params: Params) -> int:
    """Number of processes on this machine: a CPU is used best by one."""
    return max(1, min(params.launch.ranks, torch.cuda.device_count()))


def main(params: Params) -> None:
    ranks = ranks_here(params)
    if ranks * params.launch.nnodes > 1:
        from bintally.distributed.launch import launch

        settings = params.launch.model_copy(update={"ranks": ranks})
        launch(settings, "bintally.stages.encode", partial(report_failure, "encode"))
    else:
        configure_malloc()
        use_deterministic_algorithms()
        _encode(params, RankContext(0, 1, default_device(), is_main=True), StopRequest())


def run_rank() -> int:
    """Encode a share of the images as one rank; the exit code of its process."""
    return run_as_rank("encode", _encode_share)


def _encode_share(params: Params, stop: StopRequest) -> None:
    with process_group(params.launch.timeout_s) as context:
        _encode(params, context, stop)


def _encode(params: Params, context: RankContext, stop: StopRequest) -> None:
    model = params.model
    torch.manual_seed(SEED)
    backbone = Backbone(model.backbone, model.image_size, model.features)
    load_weights(backbone, model.weights)
    backbone.trainable_stages(model.trainable)  # says now, not after an hour, if it has fewer
    kind: Kind = "features" if model.trainable == "head" else "pixels"
    reader, entries = ShardReader(BINS), read_index(BINS)
    images = [partial(decode_bin, reader, entry, model.image_size) for entry in entries]
    key = sha256_hex((BINS / "index.csv").read_bytes(), model.model_dump_json().encode(), source_code(*CODE))
    digests = array("Q")

    def hash_photographs() -> Iterator[None]:
        for entry in entries:
            digests.append(photograph_digest(reader.image(entry)))
            yield

    encode(
        ENCODED,
        images,
        backbone,
        model.image_size,
        kind,
        model.mirror,
        context,
        SCRATCH / "encode",
        key,
        lambda: stop.came,
        hash_photographs(),
    )
    if context.is_main:
        save_digests(ENCODED / ENCODED_FILE, digests)


if __name__ == "__main__":
    run("encode", main, ranks_here)
