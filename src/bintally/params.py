"""``params.yaml`` as frozen models, checked as a whole: the only reader of that file."""

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from bintally.faults import Fault

PARAMS_FILE = Path("params.yaml")


def _ascending(counts: list[int]) -> list[int]:
    if counts != sorted(set(counts)):
        raise ValueError(f"{counts} must be ascending, each count once")
    return counts


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Counts = Annotated[list[Annotated[int, Field(ge=0, le=1000)]], Field(min_length=2), AfterValidator(_ascending)]
Text = Annotated[str, StringConstraints(min_length=1)]


class Checked(BaseModel):
    """Frozen; unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Fetch(Checked):
    source: Text
    """``demo``, ``s3://bucket[/prefix]`` or a folder with ``metadata/<id>.json`` and ``bin-images/<id>.jpg``."""
    endpoint: Text | None
    """URL of an S3 server; None means AWS."""
    region: Text
    anonymous: bool
    """Unsigned requests, as public buckets take them."""
    ids: Text | None
    """File that lists the ids to take; None draws them by seed from the source's listing."""
    counts: Counts
    """The counts to tell apart, ascending."""
    open_ended: bool
    """Whether the last of ``counts`` stands for itself and all above it."""
    per_count: Positive | None
    """At most so many bins of each count; None takes all."""
    concurrency: Annotated[int, Field(ge=1, le=1024)]
    seed: Seed
    demo_bins: Annotated[int, Field(ge=1, le=1_000_000)]

    @model_validator(mode="after")
    def _check(self) -> "Fetch":
        if self.source.startswith("s3:") and not re.fullmatch(r"s3://[^/\s]+(/\S*)?", self.source):
            raise ValueError(f"fetch.source: '{self.source}' must be of the form s3://bucket or s3://bucket/prefix")
        if self.endpoint and not re.fullmatch(r"https?://[^/\s]+/?", self.endpoint):
            raise ValueError(f"fetch.endpoint: '{self.endpoint}' must be of the form http://host:port")
        return self


class Split(Checked):
    train: Share
    validation: Share
    test: Share
    test_ids: Text | None
    """File that lists the ids of the test set; None draws it. What else is of their groups is left out."""
    seed: Seed

    @model_validator(mode="after")
    def _check(self) -> "Split":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"split: train, validation and test must sum to 1, not {total:g}")
        return self


class Model(Checked):
    trunk: Text
    """``efficientnet_lite0`` or the name of a torchvision classification network."""
    weights: Text
    """``DEFAULT`` (ImageNet), ``none``, or the path or https URL of a state dict."""
    features: Literal["every_scale", "last", "grid"]
    """What the head sees: the trunk's last feature vector; beside it the mean of its map at every scale; or, in its
    place, the means of a grid of cells of the last map."""
    trained: int | str
    """How much is learned: the head alone, all of it, or the head and so many of the trunk's last stages. What comes
    before is computed once an image."""
    image_size: Annotated[int, Field(ge=32, le=1024)]
    """Side of the square the photograph is resized to, in pixels."""
    mirror: bool
    seed: Seed

    @field_validator("trained", mode="before")
    @classmethod
    def _check(cls, value: object) -> object:
        if value not in ("head", "all") and not (type(value) is int and value > 0):
            raise ValueError(f"model.trained: {value!r} must be head, all, or a number of stages from 1")
        return value


class Train(Checked):
    counts: Counts | None
    """Learn these alone, of those fetched; None learns all."""
    share: Annotated[float, Field(gt=0, le=1)]
    """Share of the training bins to learn from, whole groups of them; a smaller share is part of every larger one."""
    hidden: Positive
    epochs: Positive
    head_epochs: Annotated[int, Field(ge=0)]
    """Epochs at the start in which the head learns alone, before what else `model.trained` names joins it."""
    batch_size: Positive
    """Images an update, over all ranks together."""
    accumulate: Positive
    """Parts each rank's share of a batch is worked through in: more take less memory and come to the same,
    but for batch normalisation that trains, whose statistics are of a part."""
    optimizer: Literal["adam", "adamw", "sgd"]
    lr: Annotated[float, Field(gt=0, le=10)]
    """The highest rate, that of the head."""
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    """The rate of each of the trunk's stages, as a multiple of that of the stage after it (the head after the last)."""
    schedule: Literal["constant", "cosine", "one_cycle"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    """Share of all steps in which the rate rises."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Of sgd."""
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    """Of matrices and kernels; norms and biases are left alone."""
    clip: Annotated[float, Field(gt=0)] | None
    """The greatest norm of a gradient; a longer one is shortened to it."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    """Share of a label that is spread over all counts alike."""
    label_spread: Annotated[float, Field(ge=0, le=10)]
    """Standard deviation, in items, of the bell a label is spread over the counts near it by."""
    ordinal: bool
    """The head answers "is it more than k?" for each count k but the last, given that it is k or more."""
    squared_error: Annotated[float, Field(ge=0, le=100)]
    """Weight of the squared error of the expected count, in items, beside the cross-entropy."""
    twins: Annotated[float, Field(ge=0, le=100)]
    """Weight of the squared error of the difference between two photographs of one bin in a batch."""
    records: Annotated[float, Field(ge=0, le=100)]
    """Weight of the squared error in what else the records say (:mod:`bintally.bins.facts`), in units of deviation."""
    teachers: list[Text]
    """Folders of models of the same counts and image size, whose averaged answers labels are mixed with."""
    distilled: Annotated[float, Field(ge=0, le=1)]
    """Share of a label that is the teachers'."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of the features that the head does without, other ones each time."""
    first_size: Annotated[int, Field(ge=32, le=1024)] | None
    """Side of the images at the start, in pixels, that grows to `model.image_size`; None: that from the start."""
    validate_every: Positive
    """Epochs between two validations; the last is always validated."""
    average: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the moving average of the weights, which is then what is validated and kept; 0: none."""
    precision: Literal["auto", "float32", "bfloat16"]
    """auto: bfloat16 where the GPU computes in it, else float32."""
    compile: bool
    """Let torch.compile make the step faster, after minutes of preparation."""
    seed: Seed

    @model_validator(mode="after")
    def _check(self) -> "Train":
        if self.twins and self.accumulate > 1:
            raise ValueError(f"train.twins: {self.twins} needs batches in one part, not {self.accumulate}")
        if bool(self.teachers) != bool(self.distilled):
            raise ValueError(f"train.distilled: {self.distilled} and train.teachers {self.teachers} go together")
        if self.head_epochs >= self.epochs:
            raise ValueError(f"train.head_epochs: {self.head_epochs} must be below train.epochs ({self.epochs})")
        return self


class Augment(Checked):
    """How far a training image may be changed; 0 is not at all. None of it changes how many things it shows."""

    shift: Annotated[float, Field(ge=0, le=0.25)]
    """Share of the side."""
    scale: Annotated[float, Field(ge=0, le=0.5)]
    """Share by which it grows or shrinks."""
    rotation: Annotated[float, Field(ge=0, le=45)]
    """Degrees."""
    light: Annotated[float, Field(ge=0, le=0.9)]
    """Share of the brightness, and of the contrast."""
    colour: Annotated[float, Field(ge=0, le=0.9)]
    """Share of the brightness of each channel by itself."""
    noise: Annotated[float, Field(ge=0, le=64)]
    """Greatest standard deviation, on the scale 0–255."""
    blur: Annotated[float, Field(ge=0, le=1)]
    """Share of the mean over three neighbours, along either side, in the image."""


class Launch(Checked):
    ranks: Annotated[int, Field(ge=1, le=1024)]
    """Processes on each machine."""
    nnodes: Annotated[int, Field(ge=1, le=1024)]
    """Machines."""
    rdzv_endpoint: Annotated[str, StringConstraints(pattern=r"^[^\s:]+:\d{1,5}$")]
    """host:port where they meet: a machine of theirs and a port free on it. Not looked at with one machine."""
    timeout_s: Annotated[int, Field(ge=5, le=86_400)]
    """How long machines and their ranks wait for each other before they give up."""
    max_restarts: Annotated[int, Field(ge=0, le=100)]
    """How often torchrun starts the ranks again by itself after one of them failed."""
    checkpoint_s: Annotated[float, Field(ge=0, le=86_400)]
    """Seconds between two checkpoints."""

    @model_validator(mode="after")
    def _check(self) -> "Launch":
        host, port = self.rdzv_endpoint.split(":")
        if self.nnodes > 1 and (host in ("localhost", "127.0.0.1") or not 0 < int(port) < 2**16):
            raise ValueError(
                f"launch.rdzv_endpoint: '{self.rdzv_endpoint}' must be an address and a port that "
                f"all {self.nnodes} machines reach, such as 10.0.0.1:29500"
            )
        return self


class Calibrate(Checked):
    counts: Counts | None
    """Answer with these of the counts learned, and score bins of these alone; None takes all."""
    coverage: Share
    """Share of bins whose set of counts is to hold the true one."""
    sure: Share
    """Share of answers to be right where the model does not say that it is unsure."""
    wrong_records: Share
    """Share of records that is taken to be wrong before their photographs are looked at."""


class Evaluate(Checked):
    resamples: Annotated[int, Field(ge=100, le=100_000)]
    seed: Seed


class Audit(Checked):
    """How well wrong records are found is measured on records made wrong: so many as `calibrate.wrong_records`."""

    draws: Annotated[int, Field(ge=1, le=10_000)]
    """How often other records are made wrong; the figures are means over these."""
    seed: Seed


class Range(Checked):
    low: float | int
    high: float | int
    log: bool = False
    """Whether values are drawn evenly on a logarithmic scale."""

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} must be above 0 on a logarithmic scale")
        return self


class Tune(Checked):
    """What `bintally tune` does; no stage depends on it."""

    space: Annotated[
        dict[Text, Range | Annotated[list[int | float | str | bool], Field(min_length=1)]], Field(min_length=1)
    ]
    """Values to search, by ``section.key``: from low to high (whole numbers where both are), or one of a list."""
    fixed: dict[Text, int | float | str | bool]
    """What every trial sets beside it, such as fewer epochs."""
    objectives: Annotated[list[Literal["accuracy", "rmse"]], Field(min_length=1, max_length=2)]
    """What is to be good on validation; with two, every trial that no other is better than in both is a best one."""
    stop_poor: bool
    """End a trial early that is worse, so far, than the median of those before. Not with two objectives."""
    seed: Seed


class Params(Checked):
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
                self._check_searched("space", key, value)
        for key, value in self.tune.fixed.items():
            self._check_searched("fixed", key, value)
        if self.train.compile and self.model.trained not in ("head", "all"):
            raise ValueError(
                f"train.compile: true needs model.trained: head or all, not {self.model.trained}, whose network is put "
                "together anew in every step"
            )
        if self.train.first_size and self.model.trained != "all":
            raise ValueError(
                f"train.first_size: {self.train.first_size} needs model.trained: all, not {self.model.trained}, "
                "where images of one size are computed once"
            )
        if self.train.twins and self.launch.ranks * self.launch.nnodes > 1:
            raise ValueError(f"train.twins: {self.train.twins} needs launch.ranks: 1")
        for key, counts, among in (
            ("train.counts", self.train.counts, self.fetch.counts),
            ("calibrate.counts", self.calibrate.counts, self.learned_counts),
        ):
            if counts and not set(counts) <= set(among):
                raise ValueError(f"{key}: {counts} must be among {among}, which is what there is to take from")
        return self

    def _check_searched(self, where: str, key: str, value: object) -> None:
        section, _, name = key.partition(".")
        searched = getattr(self, section, None) if section in type(self).model_fields and section != "tune" else None
        if searched is None or name not in type(searched).model_fields:
            raise ValueError(f"tune.{where}: there is no parameter '{key}' to set")
        try:
            type(searched).model_validate(searched.model_dump() | {name: value})
        except ValidationError as error:
            raise ValueError(f"tune.{where}: {key} cannot be {value!r}: {error.errors()[0]['msg'].lower()}") from error

    @property
    def learned_counts(self) -> list[int]:
        """The counts the model tells apart."""
        return self.train.counts or self.fetch.counts

    @property
    def answers(self) -> list[int]:
        """The counts it answers with and is scored on."""
        return self.calibrate.counts or self.learned_counts


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads numbers as YAML 1.2 does."""


# PyYAML follows YAML 1.1, where 1e-05, as `dvc exp run -S` writes it, is a string, and 010 is 8.
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_NUMBERS[0], re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_constructor(_NUMBERS[0], lambda _loader, node: int(node.value))
_Loader.add_implicit_resolver(
    _NUMBERS[1],
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def _sentence(error: ValidationError) -> str:
    faults = []
    for detail in error.errors():
        key = ".".join(map(str, detail["loc"])) or "the file"
        if detail["type"] == "value_error":
            said = str(detail["ctx"]["error"])
            faults.append(f"{key}: {said}" if len(detail["loc"]) > 1 and not said.startswith(key) else said)
        elif detail["type"] == "extra_forbidden":
            section = Params.model_fields.get(str(detail["loc"][0])) if len(detail["loc"]) > 1 else None
            known = section.annotation.model_fields if section else Params.model_fields  # type: ignore[union-attr]
            faults.append(
                f"{key}: there is no such parameter (its value: {detail['input']!r}), only {', '.join(known)}"
            )
        elif detail["type"] == "missing":
            faults.append(f"{key}: is missing")
        else:
            faults.append(f"{key}: {detail['input']!r} is not allowed: {detail['msg'].lower()}")
    return "; ".join(faults)


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check every parameter.

    Raises Fault that names the key, the value and what is allowed.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
        return Params.model_validate(content)
    except FileNotFoundError as error:
        raise Fault(f"{path} is not here: run this in the repository's root") from error
    except OSError as error:
        raise Fault(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Fault(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise Fault(f"{path}: {_sentence(error)}") from error
