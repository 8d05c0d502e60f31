"""The search: every trial once, whoever works on it, whatever becomes of them. Experiments are stood in for."""

import json
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from bintally.apps import tune as module
from bintally.apps.experiment import Curve, Ended
from bintally.errors import UserError
from bintally.files import read_csv, write_json
from bintally.params import load_params

Run = Callable[[str, dict[str, Any], Callable[[Sequence[Curve]], bool]], dict[str, Any]]
SPACE = {"train.lr": {"low": 0.001, "high": 0.1, "log": True}, "train.batch_size": [32, 64]}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with parameters and nothing to run."""
    content = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    content["tune"]["space"] = SPACE
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (tmp_path / "src").mkdir()
    for name in ("src/code.py", "dvc.yaml"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    for command in ("git init -q", "git add .", "git -c user.name=a -c user.email=a@b commit -qm a"):
        assert os.system(command) == 0  # noqa: S605
    return tmp_path


def answer(changes: dict[str, Any]) -> dict[str, Any]:
    """Better the nearer the rate is to 0.01."""
    distance = abs(math.log10(changes["train.lr"]) + 2)
    rules = ("most_probable", "rounded_mean", "median")
    return {rule: {"accuracy": 0.5 - distance / 5, "rmse": 1 + distance} for rule in rules}


def stand_in(name: str, changes: dict[str, Any], look: Callable[[Sequence[Curve]], bool]) -> dict[str, Any]:
    with Path("ran").open("a") as file:
        file.write(json.dumps([name, changes]) + "\n")
    time.sleep(0.02)
    look([])
    return answer(changes)


def ran() -> list[tuple[str, dict[str, Any]]]:
    return [tuple(json.loads(line)) for line in Path("ran").read_text().splitlines()]


def study() -> optuna.Study:
    return module._study(load_params(), None)


def work(trials: int) -> None:
    setattr(module, "run_experiment", stand_in)  # noqa: B010
    module.tune(trials, None)


def test_a_search_finds_what_is_good_and_says_how_to_have_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "run_experiment", stand_in)
    module.tune(20, None)
    rows = read_csv(project / "plots/tune/trials.csv")
    assert [int(row["trial"]) for row in rows] == list(range(20))
    best = max(rows, key=lambda row: float(row["accuracy"]))
    assert 0.005 < float(best["train.lr"]) < 0.02
    said = capsys.readouterr().out
    assert f"dvc exp apply {study().study_name}-{best['trial']}" in said
    assert (
        f"dvc exp run -S launch.ranks=1 -S train.lr={best['train.lr']} -S train.batch_size={best['train.batch_size']}"
        in said
    )
    for name in ("history", "importance", "slices", "contour"):
        assert (project / f"plots/tune/{name}.png").read_bytes().startswith(b"\x89PNG")

    module.tune(20, None)
    assert len(ran()) == 20
    module.tune(22, None)
    assert len(ran()) == 22 and len({json.dumps(changes) for _, changes in ran()}) == 22


def test_processes_share_the_trials_and_none_is_run_twice(project: Path) -> None:
    context = get_context("forkserver")
    workers = [context.Process(target=work, args=(12,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(ran()) == 12
    assert len({name for name, _ in ran()}) == len({json.dumps(changes) for _, changes in ran()}) == 12


@pytest.mark.parametrize(("host", "beat", "left"), [("here", 0, True), ("there", 0, True), ("there", 1e12, False)])
def test_what_an_ended_process_has_left_begins_again_with_the_same_values(
    project: Path, monkeypatch: pytest.MonkeyPatch, host: str, beat: float, left: bool
) -> None:
    monkeypatch.setattr(module, "run_experiment", stand_in)
    one = study()
    trial = one.ask()
    values = {key: module._drawn(trial, key, domain) for key, domain in load_params().tune.space.items()}
    trial.set_user_attr("worker", [socket.gethostname() if host == "here" else host, 2**22 + 1, "1"])
    trial.set_user_attr("beat", beat)
    module.tune(3, None)
    assert ([changes for _, changes in ran()].count(load_params().tune.fixed | values), len(ran())) == (
        (1, 3) if left else (0, 2)
    )


def test_a_trial_that_was_done_and_not_told_is_not_run_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run_experiment", stand_in)
    one = study()
    trial = one.ask()
    values = {key: module._drawn(trial, key, domain) for key, domain in load_params().tune.space.items()}
    trial.set_user_attr("worker", [socket.gethostname(), 2**22 + 1, "1"])
    trial.set_user_attr("beat", time.time())
    write_json(Path("metrics/validation.json"), answer(values))
    name = module.experiment_name(one, trial)
    for command in ("git add metrics", "git -c user.name=a -c user.email=a@b commit -qm b"):
        assert os.system(command) == 0  # noqa: S605
    assert os.system(f"git update-ref refs/exps/00/11/{name} HEAD && git reset -q HEAD~") == 0  # noqa: S605
    module.tune(3, None)
    rows = read_csv(project / "plots/tune/trials.csv")
    assert len(rows) == 3 and len(ran()) == 2
    assert float(rows[0]["train.lr"]) == values["train.lr"]
    assert float(rows[0]["accuracy"]) == answer(values)["median"]["accuracy"]


def test_a_failed_trial_is_recorded_and_the_search_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(name: str, changes: dict[str, Any], look: Callable[[Sequence[Curve]], bool]) -> dict[str, Any]:
        if changes["train.batch_size"] == 32:
            raise UserError("train: out of memory")
        return stand_in(name, changes, look)

    monkeypatch.setattr(module, "run_experiment", failing)
    module.tune(8, None)
    rows = read_csv(project / "plots/tune/trials.csv")
    failed = [row for row in rows if row["state"] == "failed"]
    assert len(rows) == 8 and 0 < len(failed) < 8
    assert {row["reason"] for row in failed} == {"train: out of memory"}
    assert {row["train.batch_size"] for row in failed} == {"32"}

    def always(name: str, changes: dict[str, Any], look: Callable[[Sequence[Curve]], bool]) -> dict[str, Any]:
        raise UserError("train: out of memory")

    monkeypatch.setattr(module, "run_experiment", always)
    monkeypatch.setattr(module, "STORAGE", Path("other.db"))
    with pytest.raises(UserError, match=r"^no trial of 2 came to an end: train: out of memory$"):
        module.tune(2, None)


def test_a_poor_trial_ends_early_and_a_good_one_does_not(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_curve(name: str, changes: dict[str, Any], look: Callable[[Sequence[Curve]], bool]) -> dict[str, Any]:
        accuracy = answer(changes)["median"]["accuracy"]
        for epoch in range(30):
            if look([{"epoch": epoch, "validation_accuracy": accuracy * (1 - 0.5**epoch)}]):
                raise Ended
        return stand_in(name, changes, look)

    monkeypatch.setattr(module, "run_experiment", with_curve)
    module.tune(20, None)
    trials = study().get_trials()
    ended = [trial.user_attrs.get("accuracy") for trial in trials if trial.state == TrialState.PRUNED]
    assert ended and set(ended) == {None}
    distances = {
        state: [abs(math.log10(trial.params["train.lr"]) + 2) for trial in trials if trial.state == state]
        for state in (TrialState.COMPLETE, TrialState.PRUNED)
    }
    assert min(distances[TrialState.COMPLETE]) < min(distances[TrialState.PRUNED])


def test_a_study_is_of_what_is_not_searched(project: Path) -> None:
    def named(old: str, new: str) -> str:
        Path("params.yaml").write_text(text.replace(old, new))
        return study().study_name

    text = Path("params.yaml").read_text()
    name = study().study_name
    assert named("  lr: 0.01\n", "  lr: 0.02\n") == name
    assert named("  hidden: 512\n", "  hidden: 256\n") != name
    assert named("low: 0.001", "low: 0.002") != name


def test_two_objectives_give_all_best_compromises(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["tune"] |= {
        "objectives": ["accuracy", "rmse"],
        "space": {"train.batch_size": [32, 64, 128], "train.lr": [0.01, 0.1]},
    }
    Path("params.yaml").write_text(yaml.safe_dump(content))

    def torn(name: str, changes: dict[str, Any], look: Callable[[Sequence[Curve]], bool]) -> dict[str, Any]:
        good = {32: (0.5, 1.2), 64: (0.4, 1.0), 128: (0.3, 1.3)}[changes["train.batch_size"]]
        worse = changes["train.lr"]
        figures = {"accuracy": good[0] - worse, "rmse": good[1] + worse}
        return dict.fromkeys(("most_probable", "rounded_mean", "median"), figures)

    monkeypatch.setattr(module, "run_experiment", torn)
    module.tune(20, None)
    said = capsys.readouterr().out
    assert said.count("dvc exp apply") == 2 and "-S train.batch_size=32 -S train.lr=0.01" in said
    assert "-S train.batch_size=64 -S train.lr=0.01" in said
    assert "6 of 6 trials" in said, "six are all there are to try"
    assert (project / "plots/tune/front.png").exists() and (project / "plots/tune/contour-rmse.png").exists()


def test_a_database_that_cannot_be_used_is_a_fault_without_its_password(project: Path) -> None:
    with pytest.raises(
        UserError, match=r"^--storage: 'postgresql\+psycopg://me:\*\*\*@127\.0\.0\.1:1/x' cannot be used"
    ):
        module.tune(1, "postgresql+psycopg://me:secret@127.0.0.1:1/x")
