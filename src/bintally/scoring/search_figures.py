"""Figures of a search: its history, the importance of parameters, metrics over their values."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from matplotlib import pyplot
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from bintally.scoring.figures import save

TITLES = {"accuracy": "accuracy on validation", "rmse": "RMSE on validation, items"}


def draw_study(study: optuna.Study, objectives: Sequence[str], folder: Path) -> None:
    """Write PNGs of history, importance, slices, contour and, with two objectives, the Pareto front to ``folder``.

    Importance and contour need two complete trials and two parameters; else earlier files of them are removed.
    """
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    several = len(complete) > 1 and len({key for trial in complete for key in trial.params}) > 1
    for number, objective in enumerate(objectives):
        options: dict[str, Any] = {"target": _value(number), "target_name": TITLES[objective]}
        suffix = "" if number == 0 else f"-{objective}"
        # The default evaluator, PED-ANOVA, assumes that small values are good.
        importances = partial(plots.plot_param_importances, evaluator=FanovaImportanceEvaluator(seed=0))
        for name, draw, possible in (
            ("history", plots.plot_optimization_history, True),
            ("importance", importances, several),
            ("slices", plots.plot_slice, True),
            ("contour", plots.plot_contour, several),
        ):
            _write(folder / f"{name}{suffix}.png", partial(draw, study, **options) if possible else None)
    if len(objectives) > 1:
        names = [TITLES[objective] for objective in objectives]
        _write(folder / "front.png", partial(plots.plot_pareto_front, study, target_names=names))


def _value(number: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: trial.values[number]


def _write(path: Path, draw: Callable[[], Any] | None) -> None:
    if draw is None:
        path.unlink(missing_ok=True)
        return
    # Optuna sets a style of its own, for all figures that follow.
    with pyplot.rc_context(), warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        draw()
        figure = pyplot.gcf()
        figure.set_size_inches(10, 5)
        save(figure, path, 110, "tight")
    pyplot.close(figure)
