"""params.yaml: what it may say, and that a mistake in it is named before any work starts."""

from pathlib import Path

import pytest

from bintally.errors import UserError
from bintally.params import Params, load_params

PARAMS = Path(__file__).parents[1] / "params.yaml"


def loaded(folder: Path, *changes: tuple[str, str]) -> Params:
    """A whole params.yaml with each (old line, new line) of ``changes`` made."""
    text = WHOLE
    for old, new in changes:
        assert text.count(f"  {old}\n") == 1, old
        text = text.replace(f"  {old}\n", f"  {new}\n")
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return load_params(path)


WHOLE = """\
fetch:
  source: demo
  endpoint:
  region: us-east-1
  anonymous: true
  ids:
  counts: [1, 2, 3]
  open_ended: false
  per_count: 5
  concurrency: 4
  seed: 2
  demo_bins: 30
split:
  train: 0.6
  validation: 0.2
  test: 0.2
  test_ids:
  seed: 3
model:
  backbone: resnet18
  weights: none
  features: last
  trainable: head
  image_size: 64
  mirror: true
  seed: 4
train:
  counts: [1, 3]
  share: 1.0
  hidden: 8
  epochs: 2
  head_epochs: 0
  batch_size: 16
  accumulation_steps: 1
  optimizer: adam
  lr: 0.01
  layer_decay: 1.0
  schedule: constant
  warmup: 0.0
  momentum: 0.9
  weight_decay: 0.0
  clip_grad_norm:
  label_smoothing: 0.0
  label_spread: 0.0
  ordinal: false
  squared_error: 0.0
  records: 0.0
  twins: 0.0
  teachers: []
  distilled: 0.0
  dropout: 0.0
  initial_image_size:
  validate_every: 1
  ema_decay: 0.0
  precision: auto
  compile: false
  seed: 5
augment:
  shift: 0.04
  scale: 0.08
  rotation: 4
  light: 0.2
  colour: 0.08
  noise: 4
  blur: 0.5
launch:
  ranks: 1
  nnodes: 1
  rdzv_endpoint: localhost:0
  timeout_s: 300
  max_restarts: 0
  checkpoint_s: 60
calibrate:
  counts:
  coverage: 0.9
  target_precision: 0.8
  record_error_rate: 0.1
evaluate:
  resamples: 100
  seed: 6
audit:
  draws: 10
  seed: 7
tune:
  space:
    train.lr: {low: 0.001, high: 0.1, log: true}
    train.batch_size: [32, 64]
  fixed: {}
  objectives: [accuracy]
  prune: true
  seed: 7
"""


RATES = "train.lr: {low: 0.001, high: 0.1, log: true}"


def test_the_repositorys_own_params_are_allowed() -> None:
    load_params(PARAMS)


@pytest.mark.parametrize("written", ["1e-05", "1e-5", "0.00001", "1.0e-5", "1E-5"])
def test_a_learning_rate_is_a_number_however_it_is_written(tmp_path: Path, written: str) -> None:
    assert loaded(tmp_path, ("lr: 0.01", f"lr: {written}")).train.lr == 1e-5


def test_params_cannot_be_changed_once_read(tmp_path: Path) -> None:
    params = loaded(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        params.train.lr = 1.0


@pytest.mark.parametrize("source", ["s3://bucket", "s3://bucket/some/prefix", "a/folder"])
def test_sources_of_every_kind_are_allowed(tmp_path: Path, source: str) -> None:
    assert loaded(tmp_path, ("source: demo", f"source: {source}")).fetch.source == source


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lr: 0.01", "lr: 0.01\n  patience: 9", ["train.patience", "9", "hidden"]),
        ("ranks: 1", "ranks: 1\nextra:\n  a: 7", ["extra", "7", "fetch"]),
        ("lr: 0.01", "lr: fast", ["train.lr", "'fast'"]),
        ("lr: 0.01", "lr: '0.01'", ["train.lr", "'0.01'"]),
        ("lr: 0.01", "lr: .nan", ["train.lr", "nan"]),
        ("lr: 0.01", "lr: true", ["train.lr", "True"]),
        ("lr: 0.01", "lr: 0", ["train.lr", "0", "greater than 0"]),
        ("epochs: 2", "epochs: 2.5", ["train.epochs", "2.5", "integer"]),
        ("epochs: 2", "epochs: true", ["train.epochs", "True", "integer"]),
        ("epochs: 2", "epochs: 0", ["train.epochs", "0", "1"]),
        ("epochs: 2", "epochs:", ["train.epochs", "None"]),
        ("seed: 5", "seed: -1", ["train.seed", "-1", "0"]),
        ("image_size: 64", "image_size: 31", ["model.image_size", "31", "32"]),
        ("trainable: head", "trainable: 0", ["model.trainable", "0", "head, all", "from 1"]),
        ("trainable: head", "trainable: -1", ["model.trainable", "-1", "head, all"]),
        ("trainable: head", "trainable: tail", ["model.trainable", "'tail'", "head, all"]),
        ("trainable: head", "trainable: 1.5", ["model.trainable", "1.5", "head, all"]),
        ("trainable: head", "trainable: true", ["model.trainable", "True", "head, all"]),
        ("trainable: head", "trainable: '1'", ["model.trainable", "'1'", "head, all"]),
        ("mirror: true", "mirror: 1", ["model.mirror", "1", "boolean"]),
        ("head_epochs: 0", "head_epochs: 2", ["train.head_epochs", "2", "below train.epochs (2)"]),
        ("head_epochs: 0", "head_epochs: -1", ["train.head_epochs", "-1", "0"]),
        ("accumulate: 1", "accumulate: 0", ["train.accumulation_steps", "0", "1"]),
        ("optimizer: adam", "optimizer: lamb", ["train.optimizer", "'lamb'", "'adam', 'adamw' or 'sgd'"]),
        ("schedule: constant", "schedule: step", ["train.schedule", "'step'", "one_cycle"]),
        ("layer_decay: 1.0", "layer_decay: 1.1", ["train.layer_decay", "1.1"]),
        ("distilled: 0.0", "distilled: 0.5", ["train.distilled", "0.5", "train.teachers []", "go together"]),
        ("share: 1.0", "share: 0", ["train.share", "0", "greater than 0"]),
        ("warmup: 0.0", "warmup: 1.0", ["train.warmup", "1.0"]),
        ("clip:", "clip: 0", ["train.clip_grad_norm", "0", "greater than 0"]),
        ("average: 0.0", "average: 1.0", ["train.ema_decay", "1.0"]),
        ("precision: auto", "precision: float16", ["train.precision", "'float16'", "bfloat16"]),
        ("rotation: 4", "rotation: 90", ["augment.rotation", "90", "45"]),
        ("rdzv_endpoint: localhost:0", "rdzv_endpoint: somewhere", ["launch.rdzv_endpoint", "'somewhere'"]),
        ("timeout_s: 300", "timeout_s: 4", ["launch.timeout_s", "4", "5"]),
        ("features: last", "features: first", ["model.features", "'first'", "every_scale"]),
        ("dropout: 0.0", "dropout: 1.0", ["train.dropout", "1.0"]),
        ("initial_image_size:", "initial_image_size: 31", ["train.initial_image_size", "31", "32"]),
        (
            "initial_image_size:",
            "initial_image_size: 64",
            ["train.initial_image_size", "64", "model.trainable: all", "not head"],
        ),
        ("validate_every: 1", "validate_every: 0", ["train.validate_every", "0", "1"]),
        ("train.batch_size: [32, 64]", "train.batches: [32]", ["tune.space", "no parameter 'train.batches'"]),
        ("train.batch_size: [32, 64]", "train.batch_size: [32, 0]", ["tune.space", "train.batch_size", "0"]),
        ("train.batch_size: [32, 64]", "tune.seed: [1, 2]", ["tune.space", "no parameter 'tune.seed'"]),
        (RATES, "train.lr: {low: 0.001, high: 100}", ["tune.space", "train.lr", "100", "10"]),
        (RATES, "train.lr: {low: 0.1, high: 0.1}", ["tune.space", "train.lr", "low 0.1 must be below high 0.1"]),
        (RATES, "train.lr: {low: 0, high: 0.1, log: true}", ["tune.space", "train.lr", "low 0", "above 0"]),
        ("fixed: {}", "fixed: {launch.rank: 1}", ["tune.fixed", "no parameter 'launch.rank'"]),
        ("fixed: {}", "fixed: {launch.ranks: 0}", ["tune.fixed", "launch.ranks", "0"]),
        ("objectives: [accuracy]", "objectives: [loss]", ["tune.objectives", "'loss'", "accuracy"]),
        ("counts: [1, 3]", "counts: [1, 4]", ["train.counts", "[1, 4]", "among [1, 2, 3]"]),
        ("counts: [1, 3]", "counts: [3, 1]", ["train.counts", "[3, 1]", "ascending"]),
        ("counts:", "counts: [1, 2]", ["calibrate.counts", "[1, 2]", "among [1, 3]"]),
        ("counts:", "counts: [3, 1]", ["calibrate.counts", "[3, 1]", "ascending"]),
        ("coverage: 0.9", "coverage: 1.0", ["calibrate.coverage", "1.0"]),
        ("sure: 0.8", "sure: 0", ["calibrate.target_precision", "0"]),
        ("record_error_rate: 0.1", "record_error_rate: 1", ["calibrate.record_error_rate", "1"]),
        ("draws: 10", "draws: 0", ["audit.draws", "0"]),
        ("test: 0.2", "test: 0.25", ["split", "1.05", "sum to 1"]),
        ("test: 0.2", "test: 0", ["split.test", "0", "greater than 0"]),
        ("counts: [1, 2, 3]", "counts: [2, 1]", ["fetch.counts", "[2, 1]", "ascending"]),
        ("counts: [1, 2, 3]", "counts: [1, 1, 2]", ["fetch.counts", "[1, 1, 2]", "once"]),
        ("counts: [1, 2, 3]", "counts: [4]", ["fetch.counts", "[4]", "2"]),
        ("counts: [1, 2, 3]", "counts: [1, two]", ["fetch.counts.1", "'two'", "integer"]),
        ("source: demo", "source: ''", ["fetch.source", "''"]),
        ("source: demo", "source: s3:/bucket", ["fetch.source", "'s3:/bucket'", "s3://bucket"]),
        ("source: demo", "source: s3://", ["fetch.source", "'s3://'", "s3://bucket"]),
        ("endpoint:", "endpoint: localhost:8333", ["fetch.endpoint", "'localhost:8333'", "http://host:port"]),
        ("endpoint:", "endpoint: http://a/b", ["fetch.endpoint", "'http://a/b'", "http://host:port"]),
    ],
)
def test_what_is_not_allowed_is_named_with_its_value(tmp_path: Path, old: str, new: str, said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, (old, new))
    message = str(caught.value)
    assert [part for part in said if part not in message] == []
    assert "\n" not in message and "Input should" not in message


@pytest.mark.parametrize(("written", "meant"), [("head", "head"), ("all", "all"), ("1", 1), ("12", 12)])
def test_the_head_or_all_or_a_number_of_stages_learn(tmp_path: Path, written: str, meant: str | int) -> None:
    assert loaded(tmp_path, ("trainable: head", f"trainable: {written}")).model.trainable == meant


def test_what_is_learned_and_what_is_answered_may_be_fewer_counts_than_are_fetched(tmp_path: Path) -> None:
    params = loaded(tmp_path)
    assert (params.model_counts, params.answer_counts) == ([1, 3], [1, 3])
    params = loaded(tmp_path, ("counts: [1, 3]", "counts: "), ("counts:", "counts: [2, 3]"))
    assert (params.model_counts, params.answer_counts) == ([1, 2, 3], [2, 3])


@pytest.mark.parametrize(
    ("also", "said"),
    [
        (("ranks: 1", "ranks: 2"), "launch.ranks: 1"),
        (("nnodes: 1", "nnodes: 2"), "launch.ranks: 1"),
        (("accumulate: 1", "accumulate: 2"), "one part, not 2"),
    ],
)
def test_twins_are_compared_in_batches_that_are_whole(tmp_path: Path, also: tuple[str, str], said: str) -> None:
    twins = ("twins: 0.0", "twins: 0.5")
    meeting = ("rdzv_endpoint: localhost:0", "rdzv_endpoint: 10.0.0.1:29500")
    assert loaded(tmp_path, twins, meeting).train.twins == 0.5
    with pytest.raises(UserError, match=rf"train\.twins: 0\.5 needs .*{said}"):
        loaded(tmp_path, twins, meeting, also)


def test_a_network_that_is_put_together_in_every_step_is_not_compiled(tmp_path: Path) -> None:
    compiled = ("compile: false", "compile: true")
    with pytest.raises(UserError, match=r"train\.compile: true needs model\.trained: head or all, not 2"):
        loaded(tmp_path, compiled, ("trainable: head", "trainable: 2"))
    assert loaded(tmp_path, compiled).train.compile


@pytest.mark.parametrize("endpoint", ["localhost:29500", "127.0.0.1:29500", "10.0.0.1:0", "10.0.0.1:65536"])
def test_where_several_machines_meet_is_an_address_and_a_port_that_all_reach(tmp_path: Path, endpoint: str) -> None:
    alone, several = ("rdzv_endpoint: localhost:0", f"rdzv_endpoint: {endpoint}"), ("nnodes: 1", "nnodes: 2")
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, alone, several)
    message = str(caught.value)
    assert "launch.rdzv_endpoint" in message and endpoint in message and "10.0.0.1:29500" in message
    for other in ("10.0.0.1:29500", "first.example:65535"):
        launch = loaded(tmp_path, (alone[0], f"rdzv_endpoint: {other}"), several).launch
        assert (launch.nnodes, launch.rdzv_endpoint) == (2, other)


def test_every_mistake_is_named_at_once_and_a_missing_key_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.hidden: -3 .*train\.lr: is missing.*launch\.ranks: 0 "):
        loaded(tmp_path, ("hidden: 8", "hidden: -3"), ("lr: 0.01", ""), ("ranks: 1", "ranks: 0"))


@pytest.mark.parametrize(
    ("text", "said"), [(None, "is not here"), ("train: [", "is not YAML"), ("", "None"), ("- 1", "1")]
)
def test_a_file_that_is_missing_or_no_mapping_is_a_fault(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_params(path)
    assert str(path) in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)
