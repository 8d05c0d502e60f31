"""`bintally diagnose`: find what slows a training or spoils its model."""

import argparse
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bintally.apps.arguments import positive_int
from bintally.errors import UserError, printable
from bintally.files import atomic_write, check_writable
from bintally.memory import configure_malloc
from bintally.params import load_params
from bintally.resources import limit_resources

log = logging.getLogger("bintally")


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--to", type=Path, default=Path("exports/diagnose"), metavar="FOLDER", help="default: %(default)s")
    add("--steps", type=positive_int, default=20, help="number of training steps to time (default: %(default)s)")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Profile a few training steps, check the last run of these parameters, write the report and print it.

    Returns 10 after a warning, 20 after an error, else 0. Raises UserError if the report cannot be written or the data
    cannot be prepared.
    """
    folder: Path = arguments.to
    for name in ("trace.json.gz", "diagnosis.json", "index.html"):
        check_writable(folder / name)
    params = load_params()
    _prepare_data()
    configure_malloc()
    limit_resources(params.launch.ranks)
    # No messages of the profiler; both are read when torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from bintally.diagnosis.collect import collect
    from bintally.diagnosis.profiling import TRACE
    from bintally.diagnosis.report import print_report, write_report
    from bintally.diagnosis.rules import Severity, diagnose

    evidence = collect(params, arguments.steps)
    findings = diagnose(evidence)
    if TRACE.exists():
        with atomic_write(folder / "trace.json.gz") as temporary:
            shutil.move(TRACE, temporary)  # the folder may be on another disk
    write_report(folder, evidence, findings, params)
    print_report(evidence, findings)
    print(f"\n{printable(str(folder / 'index.html'))}")
    return {Severity.WARNING: 10, Severity.ERROR: 20}.get(max(finding.severity for finding in findings), 0)


def _prepare_data() -> None:
    log.info("diagnose: dvc repro split encode")
    command = [sys.executable, "-m", "dvc", "repro", "split", "encode"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if finished.returncode:
        reason = finished.stdout.strip().rpartition("\n")[2]
        raise UserError(f"the data cannot be prepared: {reason}; see `dvc repro encode`")
