"""``params.yaml``, typed and checked as a whole: the only module that reads it."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from bintally.errors import UserError, wrong_fields
from bintally.section import Section, Text
from bintally.table_columns import Table
from bintally.yaml_files import read_yaml

PARAMS_FILE = Path("params.yaml")
MAX_IMAGE_SIZE = 1024  # pixels
MAX_NETWORKS = 16
MAX_CLASS = 50  # items; nobody tells 51 from 52 in a photograph, and the last class may stand for all above


def _ascending(counts: list[int]) -> list[int]:
    if counts != sorted(set(counts)):
        raise ValueError(f"{counts} must be ascending, each count once")
    return counts


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[int, Field(ge=1)]
ImageSize = Annotated[int, Field(ge=32, le=MAX_IMAGE_SIZE)]
Share = Annotated[float, Field(gt=0, lt=1)]
Counts = Annotated[list[Annotated[int, Field(ge=0, le=MAX_CLASS)]], Field(min_length=2), AfterValidator(_ascending)]
Reason = Literal["blurred", "dark", "glaring", "low_contrast", "odd_size", "near_duplicate"]


class Fetch(Section):
    """Which bins are taken, and from where."""

    source: Text
    """``demo``; ``s3://bucket[/prefix]`` or a folder with ``metadata/<id>.json`` and ``bin-images/<id>.jpg``; or a
    table, whose name ends in .csv, .jsonl or .parquet."""
    endpoint: Text | None
    """URL of an S3 server; null: AWS."""
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$")]
    """Region of the bucket."""
    anonymous: bool
    """Send unsigned requests, which public buckets accept; false: sign them with the usual AWS credentials."""
    ids: Text | None
    """File of the ids to take; null: draw them by seed from the source's listing."""
    counts: Counts
    """The classes: counts to distinguish, ascending."""
    open_ended: bool
    """Whether the last of `fetch.counts` stands for itself and every count above it."""
    per_count: Positive | None
    """Maximum number of bins of each count; null: all."""
    concurrency: Annotated[int, Field(ge=1, le=1024)]
    """Requests in flight at once."""
    seed: Seed
    """Seed of the draw, and of the demo warehouse."""
    demo_bins: Annotated[int, Field(ge=1, le=1_000_000)]
    """Number of bins in the demo warehouse."""
    table: Table
    """The columns of a table as source."""

    @model_validator(mode="after")
    def _check(self) -> "Fetch":
        if not self.source.isprintable() or self.source != self.source.strip():
            raise ValueError(f"fetch.source: {self.source!a} has spaces around it or control characters; remove them")
        if self.source.startswith("~"):
            raise ValueError(f"fetch.source: '{self.source}' must not begin with ~, which is not expanded here")
        if re.match(r"[A-Za-z0-9+.-]+:/|s3:", self.source):
            found = re.fullmatch(r"s3://[A-Za-z0-9][A-Za-z0-9._-]*(/.*)?", self.source)
            parts = (found[1] or "").removesuffix("/").split("/")[1:] if found else [""]
            if not {"", ".", ".."}.isdisjoint(parts):
                form = "of the form s3://bucket or s3://bucket/prefix, the prefix without empty parts, . and .."
                raise ValueError(f"fetch.source: '{self.source}' must be {form}")
        if self.endpoint:
            found = re.fullmatch(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:([0-9]{1,5}))?/?", self.endpoint)
            if not found or int(found[3] or 1) not in range(1, 2**16):
                raise ValueError(f"fetch.endpoint: '{self.endpoint}' must be of the form http://host:port")
        return self


class Split(Section):
    """How bins are divided; photographs of one bin stay together."""

    train: Share
    """Fraction of the bins to train on."""
    validation: Share
    """Fraction for choices: the epoch, the calibration."""
    test: Share
    """Fraction that is scored once."""
    test_ids: Text | None
    """File of the ids of the test set; null: draw it. Other bins of their groups are left out."""
    seed: Seed
    """Seed of the draw."""
    exclude: list[Reason]
    """Leave photographs that are bad for one of these reasons out of training."""
    exclude_wrong: Annotated[float, Field(ge=0, lt=1)]
    """Fraction of the training bins to leave out, those whose records are the least probable."""

    @model_validator(mode="after")
    def _check(self) -> "Split":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"split: train, validation and test must sum to 1, not {total:g}")
        return self


class Model(Section):
    """The network."""

    backbone: Text
    """``efficientnet_lite0``, ``1`` or ``2``, or the name of a torchvision classification network."""
    weights: Text
    """``DEFAULT`` (ImageNet), ``none``, or the path or URL of a state dict."""
    features: Literal["every_scale", "last"]
    """Input of the head: the backbone's last feature vector alone, or with the mean of its map at every scale."""
    trainable: int | str
    """What is trained: ``head``, from features computed once; ``all``; or the head and this many of the backbone's last
    stages."""
    image_size: ImageSize
    """Side of the square that photographs are resized to, pixels."""
    mirror: bool
    """Train on mirrored images too, and average both views in predictions."""

    @field_validator("trainable", mode="before")
    @classmethod
    def _check(cls, value: object) -> object:
        if value not in ("head", "all") and not (type(value) is int and value > 0):
            raise ValueError(f"model.trainable: {value!r} must be head, all, or a number of stages from 1")
        return value


class Train(Section):
    """The training run."""

    counts: Counts | None
    """Counts to train on, among `fetch.counts`; null: all."""
    share: Annotated[float, Field(gt=0, le=1)]
    """Fraction of the training bins to use, whole groups; a smaller subset is part of every larger one."""
    networks: Annotated[int, Field(ge=1, le=MAX_NETWORKS)]
    """Networks to train, one after the other, whose predictions are averaged."""
    hidden: Positive
    """Width of the head's hidden layer."""
    epochs: Positive
    """Passes over the training bins."""
    batch_size: Positive
    """Images per update, over all ranks together."""
    accumulation_steps: Positive
    """Parts that each rank's share of a batch is processed in. More use less memory and give the same result, except
    for batch normalisation that trains, whose statistics are those of a part."""
    optimizer: Literal["adam", "adamw", "sgd"]
    """torch.optim.Adam, AdamW or SGD."""
    lr: Annotated[float, Field(gt=0, le=10)]
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "one_cycle"]
    """How the learning rate changes after the warm-up."""
    warmup: Annotated[float, Field(ge=0, lt=1)]
    """Fraction of all steps in which the learning rate rises."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    """Weight decay, not applied to biases and normalisation layers."""
    clip_grad_norm: Annotated[float, Field(gt=0)] | None
    """Maximum norm of the gradient; null: no clipping."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    """Fraction of a label that is spread evenly over all counts."""
    ordinal: bool
    """Predict "more than k?" for each count k but the last, given that it is at least k (continuation ratios)."""
    initial_image_size: ImageSize | None
    """Side of the images at the start, growing to `model.image_size`, pixels; null: that size from the start."""
    validate_every: Positive
    """Epochs between validations; the last epoch is always validated."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the moving average of the weights, which is then what is validated and kept; 0: no average."""
    precision: Literal["auto", "float32", "bfloat16"]
    """auto: bfloat16 where the GPU supports it, else float32."""
    compile: bool
    """Use torch.compile: faster steps after minutes of compilation."""
    seed: Seed
    """Seed of the head, the order of the samples and the augmentation."""


class Augment(Section):
    """Random changes of a training image that leave its count as it is; 0: none."""

    shift: Annotated[float, Field(ge=0, le=0.25)]
    """Maximum shift, as a fraction of the side."""
    scale: Annotated[float, Field(ge=0, le=0.5)]
    """Maximum change of size, as a fraction."""
    rotation: Annotated[float, Field(ge=0, le=45)]
    """Maximum rotation, degrees."""
    light: Annotated[float, Field(ge=0, le=0.9)]
    """Maximum change of brightness and of contrast, as a fraction."""
    colour: Annotated[float, Field(ge=0, le=0.9)]
    """Maximum change of the brightness of each channel, as a fraction."""
    noise: Annotated[float, Field(ge=0, le=64)]
    """Maximum standard deviation of the noise, on the scale 0 to 255."""
    blur: Annotated[float, Field(ge=0, le=1)]
    """Maximum weight of the mean over three neighbours along either side."""


class Launch(Section):
    """How processes that train or encode are started."""

    ranks: Annotated[int, Field(ge=1, le=1024)]
    """Processes per machine; encode takes as many as it has GPUs for. Results do not depend on it beyond rounding."""
    nnodes: Annotated[int, Field(ge=1, le=1024)]
    """Machines."""
    rdzv_endpoint: Annotated[str, StringConstraints(pattern=r"^[^\s:]+:\d{1,5}$")]
    """host:port of one of several machines, where they meet; ignored on one machine."""
    timeout_s: Annotated[int, Field(ge=5, le=86_400)]
    """How long machines and ranks wait for each other, seconds."""
    max_restarts: Annotated[int, Field(ge=0, le=100)]
    """How often torchrun restarts failed ranks by itself."""
    checkpoint_s: Annotated[float, Field(ge=0, le=86_400)]
    """Time between checkpoints, seconds."""

    @model_validator(mode="after")
    def _check(self) -> "Launch":
        host, port = self.rdzv_endpoint.split(":")
        if self.nnodes > 1 and (host in ("localhost", "127.0.0.1") or not 0 < int(port) < 2**16):
            reached = f"an address and a port that all {self.nnodes} machines reach, such as 10.0.0.1:29500"
            raise ValueError(f"launch.rdzv_endpoint: '{self.rdzv_endpoint}' must be {reached}")
        return self


class ErrorShares(Section):
    """The kinds of errors among wrong records; the shares sum to 1."""

    quantity: Annotated[float, Field(ge=0, le=1)]
    """Share of wrong records in which the quantity of a product is wrong."""
    unlisted: Annotated[float, Field(ge=0, le=1)]
    """Share in which a product lies in the bin that is not listed."""
    missing: Annotated[float, Field(ge=0, le=1)]
    """Share in which a listed product is not there: few, as the next who comes to take it finds that out."""

    @model_validator(mode="after")
    def _check(self) -> "ErrorShares":
        total = self.quantity + self.unlisted + self.missing
        if abs(total - 1) > 1e-6:
            raise ValueError(f"quantity, unlisted and missing must sum to 1, not {total:g}")
        return self


class Calibrate(Section):
    """How probabilities are turned into answers, fitted on validation."""

    counts: Counts | None
    """Counts to answer with, and to score bins of, among those trained on; null: all."""
    coverage: Share
    """Fraction of bins whose prediction set is to contain the true count."""
    target_precision: Share
    """Fraction of answers to be right among those not marked unsure."""
    record_error_rate: Share
    """Fraction of records assumed to be wrong before their photographs are seen."""
    error_shares: ErrorShares
    """The kinds of errors assumed among wrong records."""


class Evaluate(Section):
    """The scoring of the test set."""

    resamples: Annotated[int, Field(ge=100, le=100_000)]
    """Bootstrap resamples behind the 95 % intervals."""


class Audit(Section):
    """The measurement of how well wrong records are found."""

    draws: Annotated[int, Field(ge=1, le=10_000)]
    """How often errors are injected into other records; figures are means over these draws."""


class Range(Section):
    low: float | int
    high: float | int
    log: bool = False
    """Draw values uniformly on a logarithmic scale."""

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} must be above 0 on a logarithmic scale")
        for value in (self.low, self.high):
            if not abs(value) < 2**53:  # what a float holds exactly; no infinity
                raise ValueError(f"{str(value)[:20]} must be between -2^53 and 2^53")
        return self


class Tune(Section):
    """The search of `bintally tune`; no stage depends on it."""

    space: Annotated[
        dict[Text, Range | Annotated[list[int | float | str | bool], Field(min_length=1)]], Field(min_length=1)
    ]
    """Search space by ``section.key``: from low to high (integers where both are), or one of a list."""
    fixed: dict[Text, int | float | str | bool]
    """Parameters that every trial sets as well."""
    objectives: Annotated[list[Literal["accuracy", "rmse"]], Field(min_length=1, max_length=2)]
    """Validation metrics to optimise; with two, the best trials are the Pareto-optimal ones."""
    prune: bool
    """Stop a trial that is worse than the median of the earlier ones. Not with two objectives."""
    seed: Seed
    """Seed of the sampler."""

    @model_validator(mode="after")
    def _check(self) -> "Tune":
        for key in self.space.keys() & self.fixed.keys():
            raise ValueError(f"tune.fixed: '{key}' is in tune.space too: leave it in one of them")
        return self


class Params(Section):
    fetch: Fetch
    split: Split
    model: Model
    train: Train
    augment: Augment
    launch: Launch
    calibrate: Calibrate
    evaluate: Evaluate
    audit: Audit
    tune: Tune

    @model_validator(mode="after")
    def _check(self) -> "Params":
        for key, domain in self.tune.space.items():
            for value in domain if isinstance(domain, list) else (domain.low, domain.high):
                self._check_trial_value("space", key, value)
        for key, value in self.tune.fixed.items():
            self._check_trial_value("fixed", key, value)
        if self.train.initial_image_size and self.model.trainable == "head":
            raise ValueError(
                f"train.initial_image_size: {self.train.initial_image_size} needs pixels; with model.trainable: "
                f"{self.model.trainable} features of images of one size are computed once"
            )
        for key, counts, among in (
            ("train.counts", self.train.counts, self.fetch.counts),
            ("calibrate.counts", self.calibrate.counts, self.model_counts),
        ):
            if counts and not set(counts) <= set(among):
                raise ValueError(f"{key}: {counts} must be among {among}")
        return self

    def _check_trial_value(self, where: str, key: str, value: object) -> None:
        name, _, field = key.partition(".")
        section = getattr(self, name, None) if name in type(self).model_fields and name != "tune" else None
        if section is None or field not in type(section).model_fields:
            raise ValueError(f"tune.{where}: there is no parameter '{key}' to set")
        try:
            type(section).model_validate(section.model_dump() | {field: value})
        except ValidationError as error:
            raise ValueError(f"tune.{where}: {key} cannot be {value!r}: {error.errors()[0]['msg'].lower()}") from error

    @property
    def model_counts(self) -> list[int]:
        """The counts that are the model's classes."""
        return self.train.counts or self.fetch.counts

    @property
    def answer_counts(self) -> list[int]:
        """The counts that predictions are made from and scored on."""
        return self.calibrate.counts or self.model_counts


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Every parameter, read and checked; a UserError names the key, the value and what is allowed."""
    return validate_params(read_yaml(path), path)


def validate_params(content: object, name: object) -> Params:
    """Every parameter, checked; ``name`` says in a UserError where the content is from."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{name}: {wrong_fields(error, Params)}") from error
