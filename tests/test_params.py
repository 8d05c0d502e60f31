"""params.yaml: what it may say, and that a mistake in it is named before any work starts."""

import json
from pathlib import Path

import pytest

from bintally.errors import UserError
from bintally.params import Params, load_params
from bintally.yaml_files import read_yaml

PARAMS = Path(__file__).parents[1] / "params.yaml"


def load(folder: Path, *changes: str, without: str = "") -> Params:
    """The repository's parameters with changes such as ``train.lr: 0.1``, written as YAML and loaded."""
    texts = {
        f"{section}.{key}": json.dumps(value)
        for section, parameters in read_yaml(PARAMS).items()
        for key, value in parameters.items()
    }
    for change in changes:
        name, text = change.split(": ", 1)
        texts[name] = text
    texts.pop(without, None)
    lines: list[str] = []
    for name, text in sorted(texts.items()):
        section, key = name.split(".", 1)
        lines += [] if f"{section}:" in lines else [f"{section}:"]
        lines.append(f"  {key}: {text}")
    path = folder / "params.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return load_params(path)


def test_the_repositorys_own_params_are_allowed() -> None:
    load_params(PARAMS)


@pytest.mark.parametrize("text", ["1e-05", "1e-5", "0.00001", "1.0e-5", "1E-5"])
def test_a_learning_rate_is_a_number_however_it_is_written(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"train.lr: {text}").train.lr == 1e-5


def test_a_number_with_leading_zeros_is_decimal(tmp_path: Path) -> None:
    assert load(tmp_path, "train.epochs: 010").train.epochs == 10


def test_params_cannot_be_changed_once_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_params(PARAMS).train.lr = 1.0


@pytest.mark.parametrize("source", ["s3://bucket", "s3://bucket/some/prefix", "a/folder"])
def test_sources_of_every_kind_are_allowed(tmp_path: Path, source: str) -> None:
    assert load(tmp_path, f"fetch.source: {source}").fetch.source == source


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("train.patience: 9", ["train.patience", "9", "hidden"]),
        ("extra.a: 7", ["extra", "7", "fetch"]),
        ("train.lr: fast", ["train.lr", "'fast'"]),
        ("train.lr: '0.01'", ["train.lr", "'0.01'"]),
        ("train.lr: .nan", ["train.lr", "nan"]),
        ("train.lr: true", ["train.lr", "True"]),
        ("train.lr: 0", ["train.lr", "0", "greater than 0"]),
        ("train.epochs: 2.5", ["train.epochs", "2.5", "integer"]),
        ("train.epochs: true", ["train.epochs", "True", "integer"]),
        ("train.epochs: 0", ["train.epochs", "0", "1"]),
        ("train.epochs: ", ["train.epochs", "None"]),
        ("train.seed: -1", ["train.seed", "-1", "0"]),
        ("train.accumulation_steps: 0", ["train.accumulation_steps", "0", "1"]),
        ("train.optimizer: lamb", ["train.optimizer", "'lamb'", "'adam', 'adamw' or 'sgd'"]),
        ("train.schedule: step", ["train.schedule", "'step'", "one_cycle"]),
        ("train.share: 0", ["train.share", "0", "greater than 0"]),
        ("train.warmup: 1.0", ["train.warmup", "1.0"]),
        ("train.clip_grad_norm: 0", ["train.clip_grad_norm", "0", "greater than 0"]),
        ("train.ema_decay: 1.0", ["train.ema_decay", "1.0"]),
        ("train.precision: float16", ["train.precision", "'float16'", "bfloat16"]),
        ("train.validate_every: 0", ["train.validate_every", "0", "1"]),
        ("train.initial_image_size: 31", ["train.initial_image_size", "31", "32"]),
        ("train.initial_image_size: 64", ["train.initial_image_size", "64", "needs pixels", "model.trainable: head"]),
        ("train.counts: [1, 6]", ["train.counts", "[1, 6]", "among [1, 2, 3, 4, 5]"]),
        ("train.counts: [3, 1]", ["train.counts", "[3, 1]", "ascending"]),
        ("model.image_size: 31", ["model.image_size", "31", "32"]),
        ("model.features: first", ["model.features", "'first'", "every_scale"]),
        ("model.mirror: 1", ["model.mirror", "1", "boolean"]),
        ("model.trainable: 0", ["model.trainable", "0", "head, all", "from 1"]),
        ("model.trainable: -1", ["model.trainable", "-1", "head, all"]),
        ("model.trainable: tail", ["model.trainable", "'tail'", "head, all"]),
        ("model.trainable: 1.5", ["model.trainable", "1.5", "head, all"]),
        ("model.trainable: true", ["model.trainable", "True", "head, all"]),
        ("model.trainable: '1'", ["model.trainable", "'1'", "head, all"]),
        ("augment.rotation: 90", ["augment.rotation", "90", "45"]),
        ("launch.rdzv_endpoint: somewhere", ["launch.rdzv_endpoint", "'somewhere'"]),
        ("launch.timeout_s: 4", ["launch.timeout_s", "4", "5"]),
        ("tune.space: {train.batches: [32]}", ["tune.space", "no parameter 'train.batches'"]),
        ("tune.space: {train.batch_size: [32, 0]}", ["tune.space", "train.batch_size", "0"]),
        ("tune.space: {tune.seed: [1, 2]}", ["tune.space", "no parameter 'tune.seed'"]),
        ("tune.space: {train.lr: {low: 0.001, high: 100}}", ["tune.space", "train.lr", "100", "10"]),
        ("tune.space: {train.lr: {low: 0.1, high: 0.1}}", ["train.lr", "low 0.1 must be below high 0.1"]),
        ("tune.space: {train.lr: {low: 0, high: 0.1, log: true}}", ["train.lr", "low 0", "above 0"]),
        ("tune.fixed: {launch.rank: 1}", ["tune.fixed", "no parameter 'launch.rank'"]),
        ("tune.fixed: {launch.ranks: 0}", ["tune.fixed", "launch.ranks", "0"]),
        ("tune.objectives: [loss]", ["tune.objectives", "'loss'", "accuracy"]),
        ("calibrate.counts: [1, 6]", ["calibrate.counts", "[1, 6]", "among [1, 2, 3, 4, 5]"]),
        ("calibrate.counts: [3, 1]", ["calibrate.counts", "[3, 1]", "ascending"]),
        ("calibrate.coverage: 1.0", ["calibrate.coverage", "1.0"]),
        ("calibrate.target_precision: 0", ["calibrate.target_precision", "0"]),
        ("calibrate.record_error_rate: 1", ["calibrate.record_error_rate", "1"]),
        ("audit.draws: 0", ["audit.draws", "0"]),
        ("split.test: 0.25", ["split", "1.05", "sum to 1"]),
        (
            "calibrate.error_shares: {quantity: 0.5, unlisted: 0.5, missing: 0.5}",
            ["calibrate.error_shares", "1.5", "sum to 1"],
        ),
        (
            "calibrate.error_shares: {quantity: 0.5, unlisted: 0.5, missing: 0, others: 0}",
            ["calibrate.error_shares.others", "quantity, unlisted, missing"],
        ),
        ("train.counts: [1, 51]", ["train.counts", "51", "50"]),
        ("split.test: 0", ["split.test", "0", "greater than 0"]),
        ("fetch.counts: [2, 1]", ["fetch.counts", "[2, 1]", "ascending"]),
        ("fetch.counts: [1, 1, 2]", ["fetch.counts", "[1, 1, 2]", "once"]),
        ("fetch.counts: [4]", ["fetch.counts", "[4]", "2"]),
        ("fetch.counts: [1, two]", ["fetch.counts.1", "'two'", "integer"]),
        ("fetch.source: ''", ["fetch.source", "''"]),
        ("fetch.source: s3:/bucket", ["fetch.source", "'s3:/bucket'", "s3://bucket"]),
        ("fetch.source: s3://", ["fetch.source", "'s3://'", "s3://bucket"]),
        ("fetch.endpoint: localhost:8333", ["fetch.endpoint", "'localhost:8333'", "http://host:port"]),
        ("fetch.endpoint: http://a/b", ["fetch.endpoint", "'http://a/b'", "http://host:port"]),
    ],
)
def test_what_is_not_allowed_is_named_with_its_value(tmp_path: Path, change: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, change)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message and "Input should" not in message


@pytest.mark.parametrize(("text", "value"), [("head", "head"), ("all", "all"), ("1", 1), ("12", 12)])
def test_the_head_or_all_or_a_number_of_stages_is_trainable(tmp_path: Path, text: str, value: str | int) -> None:
    assert load(tmp_path, f"model.trainable: {text}").model.trainable == value


def test_classes_and_answers_may_be_fewer_counts_than_are_fetched(tmp_path: Path) -> None:
    params = load_params(PARAMS)
    assert params.model_counts == params.answer_counts == params.fetch.counts
    params = load(tmp_path, "train.counts: [1, 3, 4]")
    assert params.model_counts == params.answer_counts == [1, 3, 4]
    params = load(tmp_path, "train.counts: [1, 3, 4]", "calibrate.counts: [3, 4]")
    assert (params.model_counts, params.answer_counts) == ([1, 3, 4], [3, 4])
    with pytest.raises(UserError, match=r"calibrate\.counts: \[2, 3\] must be among \[1, 3, 4\]"):
        load(tmp_path, "train.counts: [1, 3, 4]", "calibrate.counts: [2, 3]")


@pytest.mark.parametrize("endpoint", ["localhost:29500", "127.0.0.1:29500", "10.0.0.1:0", "10.0.0.1:65536"])
def test_several_machines_need_an_address_and_a_port_that_all_reach(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, "launch.nnodes: 2", f"launch.rdzv_endpoint: {endpoint}")
    message = str(caught.value)
    assert "launch.rdzv_endpoint" in message and endpoint in message and "10.0.0.1:29500" in message


@pytest.mark.parametrize("endpoint", ["10.0.0.1:29500", "first.example:65535"])
def test_an_address_that_several_machines_reach_is_allowed(tmp_path: Path, endpoint: str) -> None:
    launch = load(tmp_path, "launch.nnodes: 2", f"launch.rdzv_endpoint: {endpoint}").launch
    assert (launch.nnodes, launch.rdzv_endpoint) == (2, endpoint)


def test_every_mistake_is_named_at_once_and_a_missing_key_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.hidden: -3 .*train\.lr: is missing.*launch\.ranks: 0 "):
        load(tmp_path, "train.hidden: -3", "launch.ranks: 0", without="train.lr")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "does not exist"),
        ("train: [", "is not valid YAML"),
        ("train: {lr: " + 5000 * "9" + "}", "has 5000 digits"),
        ("train: " + 20_000 * "[", "is not valid YAML"),
        ("train: {lr: 1, lr: 2}", "the key 'lr' is given twice"),
        ("? [1]\n: 2", "unhashable"),
        ("", "None"),
        ("- 1", "1"),
    ],
)
def test_a_file_that_is_missing_or_no_mapping_is_a_user_error(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_params(path)
    assert str(path) in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value)
