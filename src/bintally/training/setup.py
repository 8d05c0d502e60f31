"""What a training starts from: the untrained network and its samples, read from the outs of encode and split."""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bintally.bins.groups import random_group_subset
from bintally.files import read_columns
from bintally.hashing import sha256_hex, source_code
from bintally.model.backbone import Backbone
from bintally.model.encoded import Encoded, load_encoded
from bintally.model.network import CountingNetwork, EvidenceHead, Head
from bintally.params import Params
from bintally.paths import BINS, CORRECTIONS, ENCODED, SPLITS
from bintally.scoring.evidence import FEATURES, ListFeatures
from bintally.scoring.record_errors import Totals
from bintally.training.lists import ListInputs, read_list_inputs
from bintally.training.samples import Samples

CODE = (
    "bins",
    "distributed",
    "model",
    "scoring",
    "training",
)  # whose change may change what a resumed training comes to


@dataclass(frozen=True)
class TrainingSetup:
    """Networks with their initial weights, and the bins to train, validate and test them on."""

    networks: list[CountingNetwork]
    train: Samples
    validation: Samples
    encoded: Encoded
    splits: NDArray[np.str_]
    """The split of every bin, in the order of ``encoded``."""
    list_features: ListFeatures
    """How the features of lists are scaled."""
    data_digest: str
    """SHA-256 of the encoded bins, their splits and what is known of their lists."""


def prepare(params: Params) -> TrainingSetup:
    """Read the encoded bins and their splits, and build the networks from the encoded backbone."""
    model, train, counts = params.model, params.train, params.model_counts
    torch.manual_seed(train.seed)
    encoded = load_encoded(ENCODED)

    backbone = Backbone(model.backbone, model.image_size, model.features)
    backbone.load_state_dict(encoded.backbone_state)

    def network(seed: int) -> CountingNetwork:
        head = Head(backbone.width, train.hidden, len(counts), train.ordinal, seed)
        evidence = EvidenceHead(backbone.width, train.hidden, FEATURES, len(counts), seed)
        return CountingNetwork(deepcopy(backbone), head, evidence)

    ids, split_names, bin_counts, bin_groups = read_columns(SPLITS, "id", "split", "count", "group")
    splits, truth = np.array(split_names), np.array(bin_counts, np.int64)
    classes = np.searchsorted(counts, truth)
    totals = Totals(counts, params.fetch.open_ended and counts[-1] == params.fetch.counts[-1])
    lists, scale = read_list_inputs(BINS, CORRECTIONS, ids, splits == "train", totals)
    in_share = random_group_subset(bin_groups, train.share, train.seed)

    def samples(chosen: NDArray[np.bool_]) -> Samples:
        rows = np.flatnonzero(chosen & np.isin(truth, counts))
        names, groups = ([column[row] for row in rows] for column in (ids, bin_groups))
        chosen_lists = ListInputs(lists.features[rows], lists.log_prior[rows])
        return Samples(
            encoded.rows, encoded.encoding.kind, rows, classes[rows], names, groups, model.mirror, chosen_lists
        )

    return TrainingSetup(
        [network(seed) for seed in seeds(params)],
        samples((splits == "train") & in_share),
        samples(splits == "validation"),
        encoded,
        splits,
        scale,
        sha256_hex(
            encoded.encoding.digest.encode(), SPLITS.read_bytes(), lists.features.tobytes(), lists.log_prior.tobytes()
        ),
    )


def seeds(params: Params) -> list[int]:
    """The seed of each network: `train.seed`, then 1000 more each, so that neighbouring seeds share no network."""
    return [(params.train.seed + 1000 * number) % 2**32 for number in range(params.train.networks)]


def run_key(params: Params, data_digest: str) -> str:
    """Hash of everything that a resumed training must have in common with the interrupted one, code included."""
    sections = [section.model_dump_json().encode() for section in (params.model, params.train, params.augment)]
    ranks = str(params.launch.ranks * params.launch.nnodes)
    return sha256_hex(data_digest.encode(), *sections, ranks.encode(), source_code(*CODE))
