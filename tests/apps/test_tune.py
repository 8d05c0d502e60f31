"""A search runs every trial once, by any number of processes and whatever kills them. Experiments are replaced."""

import argparse
import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from bintally.apps import search, tune
from bintally.apps.experiment import Epoch, ExperimentStopped
from bintally.errors import UserError
from bintally.files import read_csv
from bintally.params import load_params

ShouldStop = Callable[[Sequence[Epoch]], bool]
SPACE = {"train.lr": {"low": 0.001, "high": 0.1, "log": True}, "train.batch_size": [32, 64]}
COMMIT = "git -c user.name=a -c user.email=a@b commit -qm a"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with parameters and nothing to run."""
    params = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    params["tune"]["space"] = SPACE
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (tmp_path / "src").mkdir()
    for name in ("src/code.py", "dvc.yaml"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    shell("git init -q && git add .", COMMIT)
    monkeypatch.setattr(search, "run_experiment", fake_experiment)
    return tmp_path


def shell(*commands: str) -> None:
    for command in commands:
        assert os.system(command) == 0  # noqa: S605


def validation_metrics(changes: dict[str, Any]) -> dict[str, Any]:
    """Better the nearer the learning rate is to 0.01."""
    distance = abs(math.log10(changes["train.lr"]) + 2)
    return {
        rule: {"accuracy": 0.5 - distance / 5, "rmse": 1 + distance}
        for rule in ("most_probable", "rounded_mean", "median")
    }


def fake_experiment(name: str, changes: dict[str, Any], should_stop: ShouldStop) -> dict[str, Any]:
    with Path("runs").open("a") as file:
        file.write(json.dumps([name, changes]) + "\n")
    time.sleep(0.02)
    should_stop([])
    return validation_metrics(changes)


def hanging_experiment(name: str, changes: dict[str, Any], should_stop: ShouldStop) -> dict[str, Any]:
    Path("started").touch()
    time.sleep(600)
    return {}


def runs() -> list[tuple[str, dict[str, Any]]]:
    return [tuple(json.loads(line)) for line in Path("runs").read_text().splitlines()]


def study() -> optuna.Study:
    return search.open_study(load_params(), None)


def run_tune(trials: int, storage: str | None = None) -> None:
    tune.run(argparse.Namespace(trials=trials, storage=storage, jobs=1))


def work(trials: int, experiment: Callable[..., dict[str, Any]]) -> None:
    """The body of a process of its own."""
    setattr(search, "run_experiment", experiment)  # noqa: B010
    run_tune(trials)


def test_a_search_finds_good_values_and_prints_how_to_apply_them(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_tune(20)
    rows = read_csv(project / "plots/tune/trials.csv")
    assert [int(row["trial"]) for row in rows] == list(range(20))
    best = max(rows, key=lambda row: float(row["accuracy"]))
    assert 0.005 < float(best["train.lr"]) < 0.02
    output = capsys.readouterr().out
    assert f"dvc exp apply {study().study_name}-{best['trial']}" in output
    changes = f"-S launch.ranks=1 -S train.lr={best['train.lr']} -S train.batch_size={best['train.batch_size']}"
    assert f"dvc exp run {changes}" in output
    for name in ("history", "importance", "slices", "contour"):
        assert (project / f"plots/tune/{name}.png").read_bytes().startswith(b"\x89PNG")

    run_tune(20)
    assert len(runs()) == 20
    run_tune(22)
    assert len(runs()) == 22 and len({json.dumps(changes) for _, changes in runs()}) == 22


def test_processes_share_the_trials_and_none_is_run_twice(project: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=work, args=(12, fake_experiment)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(runs()) == 12
    assert len({name for name, _ in runs()}) == len({json.dumps(changes) for _, changes in runs()}) == 12
    assert len(read_csv(project / "plots/tune/trials.csv")) == 12


def test_the_trial_of_a_killed_process_is_run_again_first(project: Path) -> None:
    worker = multiprocessing.get_context("forkserver").Process(target=work, args=(3, hanging_experiment))
    worker.start()
    while not Path("started").exists():
        time.sleep(0.05)
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    (trial,) = study().get_trials()
    run_tune(3)
    rows = read_csv(project / "plots/tune/trials.csv")
    assert [(row["trial"], row["state"]) for row in rows] == [("0", "done"), ("1", "done"), ("2", "done")]
    assert [name for name, _ in runs()] == [f"{study().study_name}-{place}" for place in range(3)]
    assert runs()[0] == (trial.user_attrs["experiment"], load_params().tune.fixed | trial.params)
    assert float(rows[0]["train.lr"]) == trial.params["train.lr"]


def test_a_trial_that_died_before_its_first_heartbeat_does_not_count(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study().ask()
    monkeypatch.setattr(search, "GRACE_S", 1)
    time.sleep(1)
    run_tune(2)
    assert len(runs()) == 2


def test_a_dead_trial_that_another_process_fails_at_the_same_moment_is_run_again_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, trial = study(), study().ask()
    trial.set_user_attr(search.EXPERIMENT, "a")
    lock = search._lock_file(own, trial.number)
    lock.parent.mkdir(parents=True)
    lock.write_text("locked")

    def tell_too_late(number: int, state: TrialState, original: Callable[..., Any] = own.tell) -> None:
        study().tell(number, state=state)
        original(number, state=state)

    monkeypatch.setattr(own, "tell", tell_too_late)
    search._fail_dead_trials(own)
    assert [one.state for one in own.trials] == [TrialState.FAIL], "the other process is the one that runs it again"


def test_a_search_that_was_killed_anywhere_ends_like_one_that_was_not(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as a trial draws its values, before and after its experiment: the next process runs the same trials."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["tune"]["space"] = {"train.lr": SPACE["train.lr"], "train.batch_size": [32, 64, 128]}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setattr(search, "DATABASE", Path("undisturbed.db"))
    run_tune(14)
    undisturbed = {path.name: path.read_bytes() for path in Path("plots/tune").iterdir()}
    assert {"trials.csv", "history.png"} <= set(undisturbed)
    shutil.rmtree("plots")

    monkeypatch.undo()
    monkeypatch.setattr(search, "run_experiment", fake_experiment)
    monkeypatch.setattr(search, "GRACE_S", 1)
    monkeypatch.chdir(project)
    context = multiprocessing.get_context("forkserver")
    for moment in ("_draw_values", "_suggest", "run_experiment", "_metrics") * 2:
        worker = context.Process(target=work_and_die, args=(14, moment))
        worker.start()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
    run_tune(14)
    for name, content in undisturbed.items():
        assert (Path("plots/tune") / name).read_bytes() == content, name


def work_and_die(trials: int, moment: str) -> None:
    """The body of a process that dies in the second call of a function."""
    setattr(search, "run_experiment", fake_experiment)  # noqa: B010
    original, calls = getattr(search, moment), []

    def dies(*arguments: Any) -> Any:
        calls.append(moment)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(search, moment, dies)
    run_tune(trials)


def test_a_trial_that_another_process_took_over_changes_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def suspended(name: str, changes: dict[str, Any], should_stop: ShouldStop) -> dict[str, Any]:
        metrics = fake_experiment(name, changes, should_stop)
        if len(runs()) == 1:
            study().tell(0, state=TrialState.FAIL)
        return metrics

    monkeypatch.setattr(search, "run_experiment", suspended)
    with caplog.at_level(logging.INFO):
        run_tune(2)
    assert "another process took it over" in caplog.text
    assert [row["trial"] for row in read_csv(project / "plots/tune/trials.csv")] == ["0", "1"]


def test_a_failed_trial_is_recorded_and_the_search_continues(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_at_32(name: str, changes: dict[str, Any], should_stop: ShouldStop) -> dict[str, Any]:
        if changes["train.batch_size"] == 32:
            raise UserError("train: out of memory")
        return fake_experiment(name, changes, should_stop)

    monkeypatch.setattr(search, "run_experiment", fails_at_32)
    run_tune(8)
    rows = read_csv(project / "plots/tune/trials.csv")
    failed = [row for row in rows if row["state"] == "failed"]
    assert len(rows) == 8 and 0 < len(failed) < 8
    assert {row["reason"] for row in failed} == {"train: out of memory"}
    assert {row["train.batch_size"] for row in failed} == {"32"}

    def fails(name: str, changes: dict[str, Any], should_stop: ShouldStop) -> dict[str, Any]:
        raise UserError("train: out of memory")

    monkeypatch.setattr(search, "run_experiment", fails)
    monkeypatch.setattr(search, "DATABASE", Path("other.db"))
    with pytest.raises(UserError, match=r"^none of 2 trials finished: train: out of memory$"):
        run_tune(2)


def test_a_poor_trial_is_stopped_early_and_a_good_one_is_not(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_curve(name: str, changes: dict[str, Any], should_stop: ShouldStop) -> dict[str, Any]:
        accuracy = validation_metrics(changes)["median"]["accuracy"]
        for epoch in range(30):
            if should_stop([{"epoch": epoch, "validation_accuracy": accuracy * (1 - 0.5**epoch)}]):
                raise ExperimentStopped
        return fake_experiment(name, changes, should_stop)

    monkeypatch.setattr(search, "run_experiment", with_curve)
    run_tune(20)
    trials = study().get_trials()
    pruned = [trial.user_attrs.get("accuracy") for trial in trials if trial.state == TrialState.PRUNED]
    assert pruned and set(pruned) == {None}
    distances = {
        state: [abs(math.log10(trial.params["train.lr"]) + 2) for trial in trials if trial.state == state]
        for state in (TrialState.COMPLETE, TrialState.PRUNED)
    }
    assert min(distances[TrialState.COMPLETE]) < min(distances[TrialState.PRUNED])


def test_a_study_belongs_to_the_parameters_that_are_not_searched(project: Path) -> None:
    def name_after(old: str, new: str) -> str:
        Path("params.yaml").write_text(text.replace(old, new))
        return study().study_name

    text = Path("params.yaml").read_text()
    name = study().study_name
    assert name_after("  lr: 0.01\n", "  lr: 0.02\n") == name
    assert name_after("  hidden: 512\n", "  hidden: 256\n") != name
    assert name_after("low: 0.001", "low: 0.002") != name


def test_two_objectives_give_the_pareto_optimal_trials(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["tune"] |= {
        "objectives": ["accuracy", "rmse"],
        "space": {"train.batch_size": [32, 64, 128], "train.lr": [0.01, 0.1]},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))

    def two_optima(name: str, changes: dict[str, Any], should_stop: ShouldStop) -> dict[str, Any]:
        accuracy, rmse = {32: (0.5, 1.2), 64: (0.4, 1.0), 128: (0.3, 1.3)}[changes["train.batch_size"]]
        lr = changes["train.lr"]
        metrics = {"accuracy": accuracy - lr, "rmse": rmse + lr}
        return dict.fromkeys(("most_probable", "rounded_mean", "median"), metrics)

    monkeypatch.setattr(search, "run_experiment", two_optima)
    monkeypatch.setattr(search, "MAX_REPEATED", 20)
    run_tune(20)
    output = capsys.readouterr().out
    assert output.count("dvc exp apply") == 2 and "-S train.batch_size=32 -S train.lr=0.01" in output
    assert "-S train.batch_size=64 -S train.lr=0.01" in output
    assert "6 of 6 trials" in output, "the space has six"
    assert (project / "plots/tune/front.png").exists() and (project / "plots/tune/contour-rmse.png").exists()


def test_a_database_that_cannot_be_used_is_named_without_its_password(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "ATTEMPTS", 1)
    with pytest.raises(
        UserError, match=r"^--storage: 'postgresql\+psycopg://me:\*\*\*@127\.0\.0\.1:1/x' cannot be used"
    ):
        run_tune(1, "postgresql+psycopg://me:secret@127.0.0.1:1/x")


def test_a_file_that_is_no_database_is_named_also_when_it_breaks_on_the_way(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(name: str, changes: dict[str, Any], should_stop: ShouldStop) -> dict[str, Any]:
        for file in search.DATABASE.parent.glob("tune.db*"):
            file.write_bytes(b"no database" * 1000)
        return fake_experiment(name, changes, should_stop)

    monkeypatch.setattr(search, "run_experiment", breaks)
    for _ in range(2):
        with pytest.raises(UserError, match=r"tune\.db cannot be used: .*remove it to begin a new study") as caught:
            run_tune(2)
        assert "\n" not in str(caught.value)
    search.DATABASE.unlink()
    monkeypatch.setattr(search, "run_experiment", fake_experiment)
    run_tune(2)


def test_what_stands_in_the_way_is_found_before_any_trial(project: Path) -> None:
    Path("plots").write_text("no folder")
    with pytest.raises(UserError, match=r"'plots/tune/trials\.csv' cannot be written"):
        run_tune(2)
    Path("plots").unlink()
    Path(".bintally").write_text("no folder")
    with pytest.raises(UserError, match=r"'\.bintally/tune\.db' cannot be written"):
        run_tune(2)
    Path(".bintally").unlink()
    shutil.rmtree(".git")
    with pytest.raises(UserError, match=r"not a git repository"):
        run_tune(2)
    assert not Path(".bintally").exists() and not Path("runs").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fixed": {"train.lr": 0.1}}, r"tune\.fixed: 'train\.lr' is in tune\.space too: leave it in one of them"),
        ({"space": {"train.hidden": {"low": 1, "high": 10**400}}}, r"10{19} must be between -2\^53 and 2\^53"),
        ({"space": {"train.clip_grad_norm": {"low": 0.1, "high": float("inf")}}}, r"inf must be between"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(project: Path, changes: dict[str, Any], reason: str) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["tune"] |= changes
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(UserError, match=reason):
        run_tune(1)
