"""The Optuna study of `bintally tune` and the trials that a process runs in it."""

import json
import logging
import subprocess
import time
import warnings
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from itertools import count
from typing import Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning, TrialPruned, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from bintally.apps.experiment import Epoch, ExperimentStopped, read_metrics, remove_experiment, run_experiment
from bintally.errors import UserError
from bintally.files import SCRATCH
from bintally.params import Params, Range
from bintally.scoring.decoding import DECODINGS, FOR_ACCURACY

DATABASE = SCRATCH / "tune.db"
HEARTBEAT_S, GRACE_S = 2, 20  # a trial without a heartbeat for longer is run again
ATTEMPTS = 4  # to open the database
MAX_REPEATED = 100  # trials in a row that repeat an earlier one before the space counts as exhausted
STARTUP_TRIALS = 5  # finished before a poor trial is stopped early
DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"accuracy": "maximize", "rmse": "minimize"}
EXPERIMENT, REASON = "experiment", "reason"  # attributes of a trial: its experiment's name, why it failed

log = logging.getLogger("bintally")


class NotRun(Exception):
    """A trial that the study does not need: it repeats another one, or there are enough."""


def open_study(params: Params, storage: str | None) -> optuna.Study:
    """The study of these parameters, created if it does not exist, in a database (URL) or this folder's own.

    Raises UserError if the database cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    SCRATCH.mkdir(exist_ok=True)
    url = storage or f"sqlite:///{DATABASE}"
    engine = {"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else {"pool_pre_ping": True}
    for attempt in count(1):
        try:
            database = optuna.storages.RDBStorage(
                url,
                engine_kwargs=engine,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=partial(_replace_stale, params.tune.objectives),
            )
            return optuna.create_study(
                storage=database,
                study_name=_study_name(params),
                directions=[DIRECTIONS[objective] for objective in params.tune.objectives],
                pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=params.train.epochs // 3),
                load_if_exists=True,
            )
        except (SQLAlchemyError, ImportError, ValueError) as error:
            # One of these three: another process is creating the tables, or there is no database.
            if attempt == ATTEMPTS or not isinstance(error, IntegrityError | ProgrammingError | OperationalError):
                reason = str(error).splitlines()[0][:200]
                raise UserError(f"--storage: '{_without_password(url)}' cannot be used: {reason}") from error
            log.info("tune: the database is not ready, trying again in %d s", attempt)
            time.sleep(attempt)
    raise AssertionError("an attempt returns or raises")


def _study_name(params: Params) -> str:
    code = subprocess.run(["git", "rev-parse", "HEAD:src", "HEAD:dvc.yaml"], check=True, capture_output=True).stdout
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

    A failed trial without a reason was not needed, or its process died and another trial has its values.
    """

    def counts(trial: FrozenTrial) -> bool:
        if trial.state == TrialState.FAIL:
            return REASON in trial.user_attrs
        if trial.state == TrialState.RUNNING and EXPERIMENT not in trial.user_attrs:
            # Its process draws its values, or died before the first heartbeat: that trial is never stale.
            return trial.datetime_start is not None and time.time() - trial.datetime_start.timestamp() < GRACE_S
        return trial.state != TrialState.WAITING

    return [trial for trial in study.get_trials(deepcopy=False) if counts(trial)]


def _replace_stale(objectives: Sequence[str], study: optuna.Study, stale: FrozenTrial) -> None:
    """Replace a trial after its process died: by its metrics if its experiment has finished, else by a new run."""
    name = stale.user_attrs.get(EXPERIMENT)
    if name and (validation := read_metrics(name)):
        log.info("tune: the process of trial %d died, its experiment has finished", stale.number)
        metrics = _metrics(validation)
        values, attributes = [metrics[objective] for objective in objectives], {EXPERIMENT: name, **metrics}
        domains = stale.distributions
        study.add_trial(create_trial(values=values, params=stale.params, distributions=domains, user_attrs=attributes))
        return
    log.info("tune: the process of trial %d died, another trial runs with its values", stale.number)
    if name:
        remove_experiment(name)
        del stale.user_attrs[EXPERIMENT]
    RetryHeartbeatStaleTrialCallback()(study, stale)


def run_trials(study: optuna.Study, params: Params, number: int) -> None:
    """Run trials until the study has a number of them and none is running, here or in another process."""
    repeated, waited = 0, False
    while True:
        optuna.storages.fail_stale_trials(study)
        trials = counted_trials(study)
        exhausted = repeated >= MAX_REPEATED and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if len(trials) < number and not exhausted:
            repeated = 0 if _run_trial(study, params, number) else repeated + 1
        elif running := [trial.number for trial in trials if trial.state == TrialState.RUNNING]:
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
        try:
            values = _draw_values(study, trial, params, number)
        except NotRun:
            needed = False
            raise
        return _run_experiment(study, trial, values, params)

    try:
        study.optimize(objective, n_trials=1, catch=(NotRun, UserError))
    except (UpdateFinishedTrialError, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith("Cannot tell a "):
            raise
        log.info("tune: no heartbeat of a trial came through for %d s, another process took it over", GRACE_S)
    return needed


def _draw_values(study: optuna.Study, trial: Trial, params: Params, number: int) -> dict[str, Any]:
    """Values of the search space. Raises NotRun if another trial has them, or there are enough trials."""
    others = [other for other in counted_trials(study) if other.number != trial.number]
    if sum(other.number < trial.number for other in others) >= number:
        raise NotRun
    # From the number of the trial, so that no two processes draw the same values.
    seed = int.from_bytes(sha256(f"{params.tune.seed} {trial.number}".encode()).digest()[:4])
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    values = {key: _suggest(trial, key, domain) for key, domain in params.tune.space.items()}
    if any(other.params == values for other in counted_trials(study) if other.number != trial.number):
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
    name = f"{study.study_name}-{trial.number}"
    trial.set_user_attr(EXPERIMENT, name)

    def should_stop(epochs: Sequence[Epoch]) -> bool:
        if not (prune and epochs):
            return False
        for epoch in epochs:
            trial.report(epoch[curve], int(epoch["epoch"]))
        return trial.should_prune()

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
        log.info("tune: trial %d: %s: %s (%.0f s)", trial.number, settings, outcome, time.monotonic() - start)
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
