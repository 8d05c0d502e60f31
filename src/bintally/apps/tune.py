"""`bintally tune`: Optuna asks, DVC runs. Every trial is an experiment that `dvc exp show` lists and `apply` takes."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from fcntl import LOCK_EX, flock
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from bintally import paths
from bintally.apps.experiment import Curve, Ended, read_metrics, remove_experiment, run_experiment
from bintally.errors import UserError
from bintally.files import SCRATCH, write_csv
from bintally.interruption import terminate_with_parent
from bintally.params import Params, Range, load_params
from bintally.scoring.decoding import DECODINGS, FOR_ACCURACY

STORAGE, LOCK = SCRATCH / "tune.db", SCRATCH / "tune.lock"
BEAT_EVERY_S, DEAD_AFTER_S = 15.0, 120.0
ATTEMPTS = 4
REPETITIONS = 100  # drawn in a row before the space counts as exhausted
BEFORE_STOPPING = 5  # trials that are finished before a poor one is ended early
DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"accuracy": "maximize", "rmse": "minimize"}
# Of the study, before the number of a trial that is none: drawn when there were enough, drawn before, or begun again
# under another number.
SET_ASIDE = "set aside "

log = logging.getLogger("bintally")


def tune(trials: int, storage: str | None, jobs: int = 1) -> None:
    """Run trials, ``jobs`` at once, until the study has ``trials`` of them, and show what came out.

    A study is of the parameters that are not searched, the space and the code: change one and another study begins.
    Any number of processes on any machines may work on one, where ``storage`` is a database they share.

    Raises UserError if the storage cannot be used or no trial comes to an end.
    """
    params = load_params()
    study = _study(params, storage)
    log.info("tune: study %s, %d of %d trials done", study.study_name, _number_done(study), trials)
    _take_up_again(study, params.tune.objectives)
    others = [_start_another(trials, storage) for _ in range(jobs - 1)]
    while trial := _next(study, params, trials):
        try:
            _run(study, trial, params)
        except UpdateFinishedTrialError:
            log.info("tune: trial %d was taken over by another process, which had not heard of this one", trial.number)
        _take_up_again(study, params.tune.objectives)
    for other in others:
        if code := other.wait():
            log.warning("tune: a process beside this one ended with %d", code)
    _report(study, params)


def _start_another(trials: int, storage: str | None) -> subprocess.Popen[bytes]:
    """A process that works on the same study and ends with this one; what it reports at its end is not needed twice."""
    command = [sys.executable, sys.argv[0], "tune", f"--trials={trials}", "--jobs=1"]
    command += [f"--storage={storage}"] if storage else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=terminate_with_parent)


def _study(params: Params, storage: str | None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    SCRATCH.mkdir(exist_ok=True)
    url = storage or f"sqlite:///{STORAGE}"
    code = subprocess.run(["git", "rev-parse", "HEAD:src", "HEAD:dvc.yaml"], check=True, capture_output=True).stdout
    # Without what trials set: DVC writes it to params.yaml for a moment, and another process may read it just then.
    rest = params.model_dump()
    for key in [*params.tune.space, *params.tune.fixed]:
        section, _, setting = key.partition(".")
        del rest[section][setting]
    name = "tune-" + sha256(json.dumps(rest).encode() + code).hexdigest()[:8]
    for attempt in range(ATTEMPTS):
        try:
            return optuna.create_study(
                storage=optuna.storages.RDBStorage(url, engine_kwargs=_engine(url)),
                study_name=name,
                directions=[DIRECTIONS[objective] for objective in params.tune.objectives],
                load_if_exists=True,
            )
        except (IntegrityError, ProgrammingError, OperationalError) as error:
            # Another process is making the tables, or there is no database.
            if attempt == ATTEMPTS - 1:
                raise _unusable(url, error) from error
            log.info("tune: the storage is not ready, trying again in %.0f s", 1 + attempt)
            time.sleep(1 + attempt)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise _unusable(url, error) from error
    raise AssertionError("an attempt returns or raises")


def _unusable(url: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0][:200]
    return UserError(f"--storage: '{_without_password(url)}' cannot be used: {reason}")


def _engine(url: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else {"pool_pre_ping": True}


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url

    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return url.partition("://")[0] + "://…"


# --- whose turn it is ------------------------------------------------------------------------------------


def _next(study: optuna.Study, params: Params, trials: int) -> Trial | None:
    """The next trial of this process, its values drawn; None where there are enough."""
    for _ in range(REPETITIONS):
        trial = study.ask()
        trial.set_user_attr("worker", _worker())
        trial.set_user_attr("beat", time.time())
        others = [other for other in _counted(study) if other.number < trial.number]
        if len(others) >= trials:
            _set_aside(study, trial, "there were enough")
            return None
        # Of the trial's number, so that no two processes draw the same.
        seed = int.from_bytes(sha256(f"{params.tune.seed} {trial.number}".encode()).digest()[:4])
        study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        values = {key: _drawn(trial, key, domain) for key, domain in params.tune.space.items()}
        if not any(other.params == values for other in _counted(study) if other.number != trial.number):
            return trial
        _set_aside(study, trial, "it repeats another")
    log.info("tune: nothing new was drawn %d times in a row: the space is exhausted", REPETITIONS)
    return None


def _drawn(trial: Trial, key: str, domain: Range | list[Any]) -> object:
    if isinstance(domain, list):
        return trial.suggest_categorical(key, domain)
    if isinstance(domain.low, int) and isinstance(domain.high, int):
        return trial.suggest_int(key, domain.low, domain.high, log=domain.log)
    return trial.suggest_float(key, domain.low, domain.high, log=domain.log)


def _counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that are some: begun, and not set aside."""
    aside = study.user_attrs
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.WAITING and f"{SET_ASIDE}{trial.number}" not in aside
    ]


def _number_done(study: optuna.Study) -> int:
    return sum(trial.state.is_finished() for trial in _counted(study))


def _set_aside(study: optuna.Study, trial: Trial | FrozenTrial, reason: str) -> bool:
    """Whether it was this process that did."""
    study.set_user_attr(f"{SET_ASIDE}{trial.number}", reason)
    return _finish(study, trial, state=TrialState.FAIL)


def _finish(study: optuna.Study, trial: Trial | FrozenTrial, **outcome: Any) -> bool:
    """Tell the study; False where another process, which took this one to be gone, has."""
    try:
        study.tell(trial.number, **outcome)
    except ValueError:
        return False
    return True


def _take_up_again(study: optuna.Study, objectives: Sequence[str]) -> None:
    """Finish what a process has left that is there no longer: by its experiment where that is done, else once more."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _is_left(trial):
            continue
        name = experiment_name(study, trial)
        if validation := read_metrics(name):
            log.info("tune: trial %d was left, its experiment is done", trial.number)
            with suppress(UpdateFinishedTrialError):
                _tell(study, Trial(study, trial._trial_id), validation, objectives)
        elif _set_aside(study, trial, "its process ended"):
            log.info("tune: trial %d was left unfinished and begins again", trial.number)
            remove_experiment(name)
            study.enqueue_trial(trial.params, user_attrs={"again": trial.number})


def _worker() -> list[Any]:
    return [socket.gethostname(), os.getpid(), _started(os.getpid())]


def _is_left(trial: FrozenTrial) -> bool:
    if "beat" not in trial.user_attrs:  # asked for a moment ago, or never to be heard of again
        return trial.datetime_start is not None and time.time() - trial.datetime_start.timestamp() > DEAD_AFTER_S
    host, pid, started = trial.user_attrs["worker"]
    if host == socket.gethostname():
        return bool(_started(pid) != started)
    return time.time() - float(trial.user_attrs["beat"]) > DEAD_AFTER_S


def _started(pid: int) -> str:
    """When a process of this machine was started, which with its number tells it from all others; empty: it is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


# --- a trial ---------------------------------------------------------------------------------------------


def experiment_name(study: optuna.Study, trial: Trial | FrozenTrial) -> str:
    return f"{study.study_name}-{trial.number}"


def _run(study: optuna.Study, trial: Trial, params: Params) -> None:
    objectives, began = params.tune.objectives, time.monotonic()
    beaten = time.time()
    follows = len(objectives) == 1  # Optuna ends no trial early that has two
    curve = {"accuracy": "validation_accuracy", "rmse": "validation_loss"}[objectives[0]]
    study.pruner = optuna.pruners.MedianPruner(
        n_startup_trials=BEFORE_STOPPING, n_warmup_steps=params.train.epochs // 3
    )

    def look(epochs: Sequence[Curve]) -> bool:
        nonlocal beaten
        if time.time() - beaten > BEAT_EVERY_S:
            beaten = time.time()
            trial.set_user_attr("beat", beaten)
        if not (follows and params.tune.prune):
            return False
        for epoch in epochs:
            trial.report(epoch[curve], int(epoch["epoch"]))
        poor: bool = bool(epochs) and trial.should_prune()
        return poor

    try:
        validation = run_experiment(experiment_name(study, trial), params.tune.fixed | trial.params, look)
    except Ended:
        outcome = "ended early, worse than the median"
        _finish(study, trial, state=TrialState.PRUNED)
    except UserError as fault:
        outcome = f"failed: {fault}"
        trial.set_user_attr("reason", str(fault))
        _finish(study, trial, state=TrialState.FAIL)
    else:
        figures = _tell(study, trial, validation, objectives)
        outcome = f"accuracy {figures['accuracy']:.1%}, RMSE {figures['rmse']:.3f}"
    values = ", ".join(f"{key} {_short(value)}" for key, value in trial.params.items())
    log.info("tune: trial %d: %s: %s (%.0f s)", trial.number, values, outcome, time.monotonic() - began)


def _tell(study: optuna.Study, trial: Trial, validation: dict[str, Any], objectives: Sequence[str]) -> dict[str, float]:
    """Finish a trial with what its experiment came to on validation."""
    figures = {
        "accuracy": validation[FOR_ACCURACY]["accuracy"],
        "rmse": min(validation[rule]["rmse"] for rule in DECODINGS),
    }
    for name, value in figures.items():
        trial.set_user_attr(name, value)
    _finish(study, trial, values=[figures[objective] for objective in objectives])
    return figures


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


# --- what came out ---------------------------------------------------------------------------------------


def _report(study: optuna.Study, params: Params) -> None:
    from bintally.scoring.search_figures import draw_study  # brings matplotlib

    counted = _counted(study)
    done = [trial for trial in counted if trial.state == TrialState.COMPLETE]
    if not done:
        reasons = [str(trial.user_attrs["reason"]) for trial in counted if "reason" in trial.user_attrs]
        raise UserError(
            f"no trial of {len(counted)} came to an end: {(reasons or ['all are under way elsewhere'])[-1]}"
        )
    keys, best = list(params.tune.space), study.best_trials
    states = {TrialState.COMPLETE: "done", TrialState.PRUNED: "ended early", TrialState.FAIL: "failed"}
    rows = [
        [trial.number, states.get(trial.state, "under way"), *(trial.params.get(key, "") for key in keys)]
        + [trial.user_attrs.get(name, "") for name in DIRECTIONS]
        + [trial.user_attrs.get("reason", "")]
        for trial in counted
    ]
    with LOCK.open("w") as lock:
        flock(lock, LOCK_EX)  # of all who draw here
        write_csv(paths.TUNE / "trials.csv", ["trial", "state", *keys, *DIRECTIONS, "reason"], rows)
        draw_study(study, params.tune.objectives, paths.TUNE)

    print(f"\n{'trial':>5}  {'state':11}" + "".join(f"{key:>22}" for key in keys) + f"{'accuracy':>10}{'RMSE':>8}")
    for trial in sorted(counted, key=lambda one: (one not in best, -one.user_attrs.get("accuracy", 0.0), one.number)):
        figures = [trial.user_attrs.get(name) for name in DIRECTIONS]
        print(
            f"{trial.number:5}  {states.get(trial.state, 'under way'):11}"
            + "".join(f"{_short(trial.params.get(key)):>22}" for key in keys)
            + (f"{figures[0]:10.1%}" if figures[0] is not None else f"{'':10}")
            + (f"{figures[1]:8.3f}" if figures[1] is not None else f"{'':8}")
        )
    print(f"\n{len(done)} of {len(counted)} trials came to an end, on validation. Plots and table: {paths.TUNE}/")
    for trial in best:
        changes = " ".join(f"-S {key}={json.dumps(value)}" for key, value in (params.tune.fixed | trial.params).items())
        print(f"Best:   dvc exp apply {experiment_name(study, trial)}")
        print(f"    or  dvc exp run {changes}")
