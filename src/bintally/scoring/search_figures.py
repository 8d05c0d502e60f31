"""Pictures of a search: its history, what mattered, where the good values lie."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from matplotlib import pyplot
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as drawn

from bintally.files import atomic_write

TITLES = {"accuracy": "accuracy on validation", "rmse": "RMSE on validation, items"}


def draw_study(study: optuna.Study, objectives: Sequence[str], folder: Path) -> None:
    """Write history, importance, slices and contour (two objectives: and the front) as PNGs to ``folder``.

    Importance and contour are left out, and what lay there of them removed, where fewer than two trials or parameters
    have been.
    """
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    several = len(done) > 1
    both = several and len({key for trial in done for key in trial.params}) > 1
    for number, objective in enumerate(objectives):
        options: dict[str, Any] = {"target": _value(number), "target_name": TITLES[objective]}
        end = "" if number == 0 else f"-{objective}"
        # The default evaluator knows only how to tell what makes a value small.
        importances = partial(drawn.plot_param_importances, evaluator=FanovaImportanceEvaluator(seed=0))
        for name, draw, wanted in (
            ("history", drawn.plot_optimization_history, True),
            ("importance", importances, both),
            ("slices", drawn.plot_slice, True),
            ("contour", drawn.plot_contour, both),
        ):
            _write(folder / f"{name}{end}.png", partial(draw, study, **options) if wanted else None)
    if len(objectives) > 1:
        _write(
            folder / "front.png",
            lambda: drawn.plot_pareto_front(study, target_names=[TITLES[objective] for objective in objectives]),
        )


def _value(number: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: trial.values[number]


def _write(path: Path, draw: Callable[[], Any] | None) -> None:
    if draw is None:
        path.unlink(missing_ok=True)
        return
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        draw()
    figure = pyplot.gcf()
    figure.set_size_inches(10, 5)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
