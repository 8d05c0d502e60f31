"""`bintally tune`: search over parameters with Optuna, each trial a DVC experiment."""

import argparse
import json
import logging
import subprocess
import sys
from typing import TYPE_CHECKING

from bintally import paths
from bintally.apps.arguments import positive_int
from bintally.errors import UserError
from bintally.files import check_writable, file_lock, write_csv
from bintally.interruption import terminate_with_parent
from bintally.params import Params, load_params

if TYPE_CHECKING:
    import optuna

TABLE = paths.TUNE / "trials.csv"

log = logging.getLogger("bintally")


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--trials", type=positive_int, default=20, help="number of trials in the study (default: %(default)s)")
    add("--storage", metavar="URL", help="a database that several machines share, such as postgresql+psycopg://...")
    add("--jobs", type=positive_int, default=2, help="trials at a time on this machine (default: %(default)s)")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Run trials until the study has as many as wanted, and write and print its results.

    A study belongs to the search space, the parameters outside it and the code: a change of these starts another one.
    Processes on any number of machines work on the same study if they share a database.

    Raises UserError if the database cannot be used or no trial finishes.
    """
    from bintally.apps.search import counted_trials, database_errors_as_user_errors, open_study, run_trials

    params = load_params()
    check_writable(TABLE)
    study = open_study(params, arguments.storage)
    with database_errors_as_user_errors(arguments.storage):
        done = sum(trial.state.is_finished() for trial in counted_trials(study))
        log.info("tune: study %s, %d of %d trials done", study.study_name, done, arguments.trials)
        workers = [_start_worker(arguments.trials, arguments.storage) for _ in range(arguments.jobs - 1)]
        run_trials(study, params, arguments.trials)
        for worker in workers:
            if code := worker.wait():
                log.warning("tune: a worker process exited with %d", code)
        _report(study, params)


def _start_worker(trials: int, storage: str | None) -> subprocess.Popen[bytes]:
    """Start a process that works on the same study and is terminated with this one."""
    command = [sys.executable, sys.argv[0], "tune", f"--trials={trials}", "--jobs=1"]
    command += [f"--storage={storage}"] if storage else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=terminate_with_parent)


def _report(study: "optuna.Study", params: Params) -> None:
    """Write the table and the plots of a study, and print the table and how to use the best trials."""
    import optuna
    from optuna.trial import TrialState

    from bintally.apps.search import DIRECTIONS, EXPERIMENT, REASON, counted_trials, position, short
    from bintally.scoring.search_figures import draw_study

    # By their places, so that a search that was killed on its way has the same table and figures.
    counted = sorted(counted_trials(study), key=position)
    study = optuna.create_study(directions=study.directions)
    study.add_trials(counted)
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        reasons = [str(trial.user_attrs[REASON]) for trial in trials if REASON in trial.user_attrs]
        raise UserError(f"none of {len(trials)} trials finished: {(reasons or ['all were stopped early'])[-1]}")
    keys, best = list(params.tune.space), study.best_trials
    states = {TrialState.COMPLETE: "done", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}
    rows = [
        [position(trial), states.get(trial.state, "running"), *(trial.params.get(key, "") for key in keys)]
        + [trial.user_attrs.get(name, "") for name in DIRECTIONS]
        + [trial.user_attrs.get(REASON, "")]
        for trial in trials
    ]
    with file_lock(TABLE):  # other processes here write the same files
        write_csv(TABLE, ["trial", "state", *keys, *DIRECTIONS, "reason"], rows)
        draw_study(study, params.tune.objectives, paths.TUNE)

    print(f"\n{'trial':>5}  {'state':13}" + "".join(f"{key:>22}" for key in keys) + f"{'accuracy':>10}{'RMSE':>8}")
    for trial in sorted(trials, key=lambda one: (one not in best, -one.user_attrs.get("accuracy", 0.0), one.number)):
        accuracy, rmse = (trial.user_attrs.get(name) for name in DIRECTIONS)
        print(
            f"{position(trial):5}  {states.get(trial.state, 'running'):13}"
            + "".join(f"{short(trial.params.get(key)):>22}" for key in keys)
            + (f"{accuracy:10.1%}{rmse:8.3f}" if accuracy is not None and rmse is not None else "")
        )
    print(f"\n{len(complete)} of {len(trials)} trials finished; metrics are of validation. Plots, table: {paths.TUNE}/")
    for trial in best:
        changes = " ".join(f"-S {key}={json.dumps(value)}" for key, value in (params.tune.fixed | trial.params).items())
        print(f"Best:   dvc exp apply {trial.user_attrs[EXPERIMENT]}\n    or  dvc exp run {changes}")
