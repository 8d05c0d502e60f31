"""The Optuna study of `bintally tune` and the trials that a process runs in it."""

import json
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, TrialPruned, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from bintally.apps.experiment import LOGS, Epoch, ExperimentStopped, run_experiment
from bintally.apps.repository import git
from bintally.errors import UserError
from bintally.files import SCRATCH, check_writable
from bintally.params import Params, Range
from bintally.scoring.decoding import DECODINGS, FOR_ACCURACY

DATABASE = SCRATCH / "tune.db"
HEARTBEAT_S, GRACE_S = 2, 20  # a trial without a heartbeat for longer is run again
ATTEMPTS = 4  # to open the database
MAX_REPEATED = 100  # trials in a row that repeat an earlier one before the space counts as exhausted
STARTUP_TRIALS = 5  # finished before a poor trial is stopped early
DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"accuracy": "maximize", "rmse": "minimize"}
# Attributes of a trial: its experiment's name, why it failed, its place among those that count, whether its values were
# those of another one. A place, not a number: what a killed process has left takes a number.
EXPERIMENT, REASON, POSITION, REPEATED = "experiment", "reason", "position", "repeated"

log = logging.getLogger("bintally")


class NotRun(Exception):
    """A trial that the study does not need: it repeats another one, or there are enough."""


def open_study(params: Params, storage: str | None) -> optuna.Study:
    """The study of these parameters, created if it does not exist, in a database (URL) or this folder's own.

    Raises UserError if the database cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    name = _study_name(params)
    if storage is None:
        check_writable(DATABASE)
    url = f"sqlite:///{DATABASE}" if storage is None else storage
    engine = {"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else {"pool_pre_ping": True}
    for attempt in count(1):
        try:
            database = optuna.storages.RDBStorage(
                url,
                engine_kwargs=engine,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=_replace_stale,
            )
            return optuna.create_study(
                storage=database,
                study_name=name,
                directions=[DIRECTIONS[objective] for objective in params.tune.objectives],
                pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=params.train.epochs // 3),
                load_if_exists=True,
            )
        except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
            # One of these three: another process is creating the tables, or there is no database.
            if attempt == ATTEMPTS or not isinstance(error, IntegrityError | ProgrammingError | OperationalError):
                raise _unusable(storage, error) from error
            log.info("tune: the database is not ready, trying again in %d s", attempt)
            time.sleep(attempt)
    raise AssertionError("an attempt returns or raises")


def _unusable(storage: str | None, error: Exception) -> UserError:
    reason = " ".join(str(error.__cause__ or error).split())[:200]
    if storage is None:
        return UserError(f"{DATABASE} cannot be used: {reason}; remove it to begin a new study")
    return UserError(f"--storage: '{_without_password(storage)}' cannot be used: {reason}")


@contextmanager
def database_errors_as_user_errors(storage: str | None) -> Iterator[None]:
    """Turn an error of the database while the block runs into a :class:`UserError`."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise _unusable(storage, error) from error
    except UnboundLocalError as error:  # of Optuna's clean-up, while it handles one of those
        if not isinstance(error.__context__, SQLAlchemyError | StorageInternalError):
            raise
        raise _unusable(storage, error.__context__) from error


def _study_name(params: Params) -> str:
    code = git("rev-parse", "HEAD:src", "HEAD:dvc.yaml").encode()
    # Without the parameters that trials set: DVC writes them to params.yaml for a moment, as another process starts.
    fixed = params.model_dump()
    for key in [*params.tune.space, *params.tune.fixed]:
        section, _, name = key.partition(".")
        del fixed[section][name]
    return "tune-" + sha256(json.dumps(fixed).encode() + code).hexdigest()[:8]


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return url.partition("://")[0] + "://…"


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: running, finished, or failed for a reason of their own.

    A failed trial without a reason was not needed, or its process died and another trial has its place.
    """
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if (REASON in trial.user_attrs if trial.state == TrialState.FAIL else trial.state != TrialState.WAITING)
    ]


def position(trial: FrozenTrial) -> int:
    """The place of a trial among those that count."""
    return int(trial.user_attrs.get(POSITION, trial.number))


def _draws(trial: FrozenTrial) -> bool:
    """Whether its process draws its values, or died as it did."""
    return trial.state == TrialState.RUNNING and EXPERIMENT not in trial.user_attrs


@contextmanager
def _lock(study: optuna.Study, trial: Trial) -> Iterator[None]:
    """Hold a lock while a trial runs: a process of this folder that died is known at once, not by a late heartbeat."""
    path = _lock_file(study, trial.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        flock(lock, LOCK_EX)
        lock.write("locked")
        lock.flush()
        yield
        path.unlink()


def _lock_file(study: optuna.Study, number: int) -> Path:
    return LOGS / f"{study.study_name}-trial-{number}.lock"


def _fail_dead_trials(study: optuna.Study) -> None:
    """Fail the trials whose processes died, and run those again that had their values."""
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        path = _lock_file(study, trial.number)
        try:
            with path.open() as lock:
                flock(lock, LOCK_EX | LOCK_NB)
                if lock.read() and _fail(study, trial.number):
                    _replace_stale(study, trial)
                    path.unlink()
        except BlockingIOError:
            continue
        except FileNotFoundError:
            # Of another folder, or it died at once. Optuna never calls a trial stale that had no heartbeat yet.
            if _draws(trial) and trial.datetime_start and time.time() - trial.datetime_start.timestamp() > GRACE_S:
                _fail(study, trial.number)


def _fail(study: optuna.Study, number: int) -> bool:
    """Fail a running trial; False if it has ended, here or in another process."""
    try:
        study.tell(number, state=TrialState.FAIL)
    except (UpdateFinishedTrialError, ValueError) as error:
        if not _is_finished(error):
            raise
        return False
    return True


def _is_finished(error: Exception) -> bool:
    """Whether an error of `Study.tell` says that the trial has ended already."""
    return isinstance(error, UpdateFinishedTrialError) or str(error).startswith("Cannot tell a ")


def _replace_stale(study: optuna.Study, stale: FrozenTrial) -> None:
    """Run a trial whose process died again: what its experiment has finished comes from DVC's run-cache."""
    if EXPERIMENT not in stale.user_attrs:
        return  # without all of its values: another one draws them
    log.info("tune: the process of trial %d died, it is run again", position(stale))
    del stale.user_attrs[EXPERIMENT]
    RetryHeartbeatStaleTrialCallback()(study, stale)


def run_trials(study: optuna.Study, params: Params, number: int) -> None:
    """Run trials until the study has a number of them and none is running, here or in another process."""
    repeated, waited = 0, False
    while True:
        _fail_dead_trials(study)
        trials = counted_trials(study)
        exhausted = repeated >= MAX_REPEATED and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if len(trials) < number and not exhausted:
            repeated = 0 if _run_trial(study, params, number) else repeated + 1
        elif running := [position(trial) for trial in trials if trial.state == TrialState.RUNNING]:
            if not waited:
                log.info("tune: waiting for trials of other processes: %s", ", ".join(map(str, running)))
            waited = True
            time.sleep(1)
        else:
            break
    if len(trials) < number:
        log.info("tune: %d trials in a row repeated earlier ones: the space is exhausted", repeated)


def _run_trial(study: optuna.Study, params: Params, number: int) -> bool:
    """Run the next trial; False if it was not needed."""
    needed = True

    def objective(trial: Trial) -> list[float]:
        nonlocal needed
        locks.enter_context(_lock(study, trial))
        try:
            values = _draw_values(study, trial, params, number)
        except NotRun:
            needed = False
            raise
        return _run_experiment(study, trial, values, params)

    try:
        with ExitStack() as locks:
            study.optimize(objective, n_trials=1, catch=(NotRun, UserError))
    except (UpdateFinishedTrialError, ValueError) as error:
        if not _is_finished(error):
            raise
        log.info("tune: no heartbeat of a trial came through for %d s, another process took it over", GRACE_S)
    return needed


def _draw_values(study: optuna.Study, trial: Trial, params: Params, number: int) -> dict[str, Any]:
    """Values of the search space. Raises NotRun if another trial has them, or there are enough trials."""
    # One after the other, so that each has a place of its own.
    while any(_draws(other) and other.number < trial.number for other in counted_trials(study)):
        time.sleep(0.1)
        _fail_dead_trials(study)
    others = [other for other in counted_trials(study) if other.number != trial.number]
    if sum(other.number < trial.number for other in others) >= number:
        raise NotRun
    everything = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
    place = trial.user_attrs.get(POSITION)  # that of a trial whose process died
    if place is None:
        waiting = [other for other in everything if other.state == TrialState.WAITING]
        taken = {other.user_attrs.get(POSITION) for other in [*others, *waiting]}
        place = next(free for free in count() if free not in taken)
        trial.set_user_attr(POSITION, place)
    attempts = sum(REPEATED in other.user_attrs and other.user_attrs[POSITION] == place for other in everything)
    # From its place: no two trials draw the same values, and a search that was killed draws those it would have.
    text = f"{params.tune.seed} {place}" + f" {attempts}" * bool(attempts)
    seed = int.from_bytes(sha256(text.encode()).digest()[:4])
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    values = {key: _suggest(trial, key, domain) for key, domain in params.tune.space.items()}
    if any(other.params == values for other in counted_trials(study) if other.number != trial.number):
        trial.set_user_attr(REPEATED, True)
        raise NotRun
    return values


def _suggest(trial: Trial, key: str, domain: Range | list[Any]) -> object:
    if isinstance(domain, list):
        return trial.suggest_categorical(key, domain)
    if isinstance(domain.low, int) and isinstance(domain.high, int):
        return trial.suggest_int(key, domain.low, domain.high, log=domain.log)
    return trial.suggest_float(key, domain.low, domain.high, log=domain.log)


def _run_experiment(study: optuna.Study, trial: Trial, values: dict[str, Any], params: Params) -> list[float]:
    """Run a trial's experiment and return its objectives.

    Raises TrialPruned if it was stopped early, UserError if it failed.
    """
    objectives, start = params.tune.objectives, time.monotonic()
    curve = {"accuracy": "validation_accuracy", "rmse": "validation_loss"}[objectives[0]]
    prune = params.tune.prune and len(objectives) == 1  # Optuna prunes no trial with two objectives
    place = trial.user_attrs[POSITION]
    name = f"{study.study_name}-{place}"
    trial.set_user_attr(EXPERIMENT, name)

    def should_stop(epochs: Sequence[Epoch]) -> bool:
        for epoch in epochs if prune else []:
            trial.report(epoch[curve], int(epoch["epoch"]))
            if trial.should_prune():  # epoch by epoch: the answer must not depend on how many came at once
                return True
        return False

    outcome = "failed"
    try:
        metrics = _metrics(run_experiment(name, params.tune.fixed | values, should_stop))
        outcome = f"accuracy {metrics['accuracy']:.1%}, RMSE {metrics['rmse']:.3f}"
    except ExperimentStopped as error:
        outcome = "stopped early, worse than the median"
        raise TrialPruned from error
    except UserError as error:
        outcome = f"failed: {error}"
        trial.set_user_attr(REASON, str(error))
        raise
    finally:
        settings = ", ".join(f"{key} {short(value)}" for key, value in values.items())
        log.info("tune: trial %d: %s: %s (%.0f s)", place, settings, outcome, time.monotonic() - start)
    for key, value in metrics.items():
        trial.set_user_attr(key, value)
    return [metrics[objective] for objective in objectives]


def _metrics(validation: dict[str, Any]) -> dict[str, float]:
    """Accuracy and RMSE of an experiment, each by its decoding rule."""
    return {
        "accuracy": validation[FOR_ACCURACY]["accuracy"],
        "rmse": min(validation[rule]["rmse"] for rule in DECODINGS),
    }


def short(value: object) -> str:
    """A parameter's value as text, numbers to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
