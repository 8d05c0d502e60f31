"""`make repro`: rebuild what changed, push it, and show what came out."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from bintally import paths
from bintally.apps.remote import Remote, default_remote, reachable
from bintally.errors import UserError
from bintally.files import SCRATCH, write_text
from bintally.params import load_params

PUSHED = SCRATCH / "pushed"
PAGE = Path("dvc_plots/index.html")


def reproduce() -> None:
    """Run `dvc repro`; where anything changed, push data and run-cache and write the plots page; print the metrics.

    Raises UserError if a step fails.
    """
    load_params()
    _dvc("repro")
    remote = default_remote()
    state = _state(remote)
    if PUSHED.exists() and PUSHED.read_text() == state and PAGE.exists():
        print("\nNothing changed since the last push.")
    else:
        with reachable(remote):
            _dvc("push", "--run-cache")
        _dvc("plots", "show")
        write_text(PUSHED, state)
    print(_summary())


def pull() -> None:
    """Fetch the outs of dvc.lock and the run-cache from the default remote. Raises UserError if that fails."""
    with reachable(default_remote()):
        _dvc("pull", "--run-cache")


def _dvc(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], check=False)
    if done.returncode:
        raise UserError(f"`dvc {' '.join(arguments)}` failed, its reason is above")


def _state(remote: Remote) -> str:
    return hashlib.sha256(Path("dvc.lock").read_bytes() + repr(remote).encode()).hexdigest()


def _summary() -> str:
    test = json.loads(paths.TEST_METRICS.read_text(encoding="utf-8"))
    rows = json.loads(paths.BENCHMARK.read_text(encoding="utf-8"))
    lines = ["", f"{'':44}{'accuracy':>10}{'RMSE':>8}"]
    for rule in ("most_probable", "rounded_mean"):
        low, high = test["interval_95"][rule]["accuracy"]
        name = f"{rule.replace('_', ' ')} (95 %: {low:.1%} to {high:.1%})"
        lines.append(f"{name:44}{test[rule]['accuracy']:10.1%}{test[rule]['rmse']:8.3f}")
    for row in rows["rows"][1:4]:
        lines.append(f"{row['name']:44}{row['accuracy']:10.1%}{row['rmse']:8.3f}")
    lines += [
        f"{test['images']} test bins, calibration error {test['calibration_error']:.3f}. {rows['notes'][0]}",
        "",
        f"Plots:  {PAGE}   (pictures in plots/, the table in {paths.BENCHMARK_TABLE})",
        "Next:   . .venv/bin/activate",
        "        dvc exp run -S train.lr=0.0037      another learning rate, seconds of work",
        "        dvc metrics diff                    what it changed",
        "        dvc exp show                        all experiments in a table",
    ]
    return "\n".join(lines)
