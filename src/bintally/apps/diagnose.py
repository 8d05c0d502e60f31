"""`bintally diagnose`: what is wrong with a training and what to change, as a page, as JSON and as an exit code.

It trains for a few steps under torch.profiler, as many ranks as `launch.ranks` says on this machine, reads the curves
of the last run of these parameters and asks its model about the validation bins.
"""

import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bintally import paths
from bintally.diagnosis.evidence import Evidence, Learned, near_duplicate_share
from bintally.diagnosis.rules import Finding, Severity, diagnose, verdict
from bintally.errors import UserError, disk_full_as_user_error
from bintally.files import SCRATCH, read_csv, write_json, write_text
from bintally.memory import configure_malloc
from bintally.page import document, picture
from bintally.params import Params, load_params
from bintally.progress import log_to_stderr
from bintally.resources import limit_resources
from bintally.stages.train import launch, prepare, run_key

FOLDER = SCRATCH / "diagnose"
PROFILE, TRACE = FOLDER / "profile.json", FOLDER / "trace.json.gz"
EXIT_CODES = {Severity.WARNING: 10, Severity.ERROR: 20}
COLOURS = {
    Severity.NOT_CHECKED: "#718096",
    Severity.FINE: "#2f855a",
    Severity.ADVICE: "#2b6cb0",
    Severity.WARNING: "#b7791f",
    Severity.ERROR: "#c53030",
}
SIGNATURE = 512  # numbers a picture is compared by, at most
STYLE = "".join(f".{severity.name}{{color:{colour};font-weight:600}}" for severity, colour in COLOURS.items())

log = logging.getLogger("bintally")


def run_diagnosis(folder: Path, steps: int) -> int:
    """Write ``index.html``, ``diagnosis.json`` and ``trace.json.gz`` to ``folder``, print what was found.

    Returns 0 where nothing is worse than advice, 10 after a warning, 20 after an error. Raises UserError if the data that
    the parameters ask for cannot be made.
    """
    params = load_params()
    log.info("diagnose: dvc repro split encode")
    made = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "split", "encode"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if made.returncode:
        raise UserError(
            f"its data cannot be made: {made.stdout.strip().splitlines()[-1]}; `dvc repro encode` says more"
        )
    evidence = collect(params, steps)
    findings = diagnose(evidence)
    folder.mkdir(parents=True, exist_ok=True)
    if TRACE.exists():
        TRACE.replace(folder / "trace.json.gz")
    _write(folder, evidence, findings, params)
    _print(folder, evidence, findings)
    return EXIT_CODES.get(max(finding.severity for finding in findings), 0)


def collect(params: Params, steps: int) -> Evidence:
    """All that rules are held against, of the encoded bins and the last run that are here."""
    configure_malloc()
    for path in (PROFILE, TRACE):
        path.unlink(missing_ok=True)
    os.environ["BINTALLY_PROFILED_STEPS"] = str(steps)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of its start and stop otherwise
    limit_resources(params.launch.ranks)
    here = params.model_copy(update={"launch": params.launch.model_copy(update={"nnodes": 1, "max_restarts": 0})})
    launch(here, "bintally.apps.diagnose")
    profile = json.loads(PROFILE.read_text(encoding="utf-8"))
    learned = _learned(params)
    epochs, fault = _curves(profile.pop("key"), learned is not None)
    table = read_csv(paths.SPLITS)
    training = [int(line["count"]) for line in table if line["split"] == "train"]
    return Evidence(
        profile,
        epochs,
        fault,
        learned,
        {count: training.count(count) for count in params.model_counts},
        _copies([int(line["count"]) for line in table]),
    )


def _curves(key: str, finished: bool) -> tuple[list[dict[str, float]], str]:
    """The epochs of the last run of these parameters, and why it failed."""
    live = SCRATCH / "live/epochs.jsonl"
    lines = [json.loads(line) for line in live.read_text(encoding="utf-8").splitlines()] if live.is_file() else []
    if lines and lines[0]["key"] == key:
        faults = [line["fault"] for line in lines if "fault" in line]
        return [line for line in lines if "epoch" in line], (faults or [""])[0]
    if not finished:
        return [], ""
    columns = {}
    for name in ("train/loss", "train/accuracy", "train/gradient_norm", "validation/loss", "validation/accuracy"):
        rows = (paths.TRAINING_CURVES / f"plots/metrics/{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        column = name.replace("train/gradient_norm", "gradient_norm").replace("/", "_")
        columns["epoch"], columns[column] = zip(*[map(float, row.split("\t")[-2:]) for row in rows], strict=True)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], ""


def _learned(params: Params) -> Learned | None:
    """What the model says of the validation bins, if it is one of these parameters."""
    from bintally.model.card import load_model
    from bintally.model.encoded import load_encoded
    from bintally.training.validation import answers

    if not (paths.MODELS / "card.json").is_file():
        return None
    network, card = load_model(paths.MODELS)
    if card.parameters != {name: getattr(params, name).model_dump() for name in card.parameters}:
        return None
    load_encoded(paths.ENCODED).ready(network.backbone)
    return answers(network, prepare(params).validation, card.counts)


def _copies(counts: list[int]) -> float:
    """See near_duplicate_share; of what is encoded of each bin, its first view, in means of neighbouring numbers."""
    from bintally.model.encoded import load_encoded

    rows = load_encoded(paths.ENCODED).rows
    signatures = []
    for start in range(0, len(counts), SIGNATURE):
        part = rows.take(np.arange(start, min(start + SIGNATURE, len(counts))))
        flat = part.reshape(len(part), -1) if part.dtype == np.uint8 else part[:, 0]
        pieces = np.array_split(np.arange(flat.shape[1]), min(SIGNATURE, flat.shape[1]))
        signatures.append(np.add.reduceat(flat.astype(np.float32), [piece[0] for piece in pieces], axis=1))
    return near_duplicate_share(np.concatenate(signatures), counts)


# --- what is told ----------------------------------------------------------------------------------------


def _write(folder: Path, evidence: Evidence, findings: list[Finding], params: Params) -> None:
    from bintally.diagnosis.figures import answers_picture, curves_picture, step_picture

    write_json(
        folder / "diagnosis.json",
        {
            "verdict": verdict(evidence),
            "worst": max(finding.severity for finding in findings).name.lower(),
            "findings": [asdict(finding) | {"severity": finding.severity.name.lower()} for finding in findings],
            "profile": evidence.profile,
            "epochs": [{name: _finite(value) for name, value in epoch.items()} for epoch in evidence.epochs],
        },
    )
    shown = []
    if "shares" in evidence.profile:
        shown.append(("Where a step's time goes", step_picture(evidence), "under the profiler but for images a second"))
    if evidence.epochs:
        shown.append(("The curves", curves_picture(evidence), "of the last run of these parameters"))
    if evidence.learned:
        shown.append(("What it answers", answers_picture(evidence), "the most probable of the counts it has learned"))
    figures = "".join(
        f"<h2>{title}</h2><figure>{picture(figure, title)}<figcaption>{caption}</figcaption></figure>"
        for title, figure, caption in shown
    )
    rows = "".join(
        f'<tr><td class="{finding.severity.name}">{_word(finding)}</td><td>{escape(finding.rule)}</td>'
        f"<td>{escape(finding.evidence)}</td><td>{escape(finding.threshold)}</td>"
        f"<td>{escape(finding.advice) if finding.severity > Severity.FINE else ''}</td></tr>"
        for finding in _worst_first(findings)
    )
    profile = evidence.profile
    body = (
        f"<h1>Diagnosis</h1><p><b>{escape(verdict(evidence))}</b></p>"
        f"<p>{escape(str(profile['device']))}, ranks: {profile['ranks']}, threads of each: {profile['threads']}, "
        f"{params.model.backbone} at {params.model.image_size} pixels, learning {params.model.trainable}, "
        f"{profile['steps']} steps timed. "
        '<a href="trace.json.gz">trace.json.gz</a> opens in a trace viewer, such as ui.perfetto.dev or '
        "chrome://tracing.</p>"
        "<table><thead><tr><th>severity</th><th>rule</th><th>found</th><th>holds when</th><th>advice</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{figures}"
    )
    write_text(folder / "index.html", document("Diagnosis", body, STYLE))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # which JSON cannot hold


def _print(folder: Path, evidence: Evidence, findings: list[Finding]) -> None:
    print(f"\n{verdict(evidence)}\n")
    for finding in _worst_first(findings):
        print(f"{_word(finding):12} {finding.rule:28} {finding.evidence}")
        if finding.severity > Severity.FINE:
            print(f"{'':12} {'':28} → {finding.advice}")
    print(f"\n{folder / 'index.html'}")


def _word(finding: Finding) -> str:
    return finding.severity.name.lower().replace("_", " ")


def _worst_first(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: -finding.severity)


# --- one rank --------------------------------------------------------------------------------------------


def _rank() -> None:
    """One process of torchrun's."""
    configure_malloc()
    from bintally.diagnosis.profiling import profile_steps
    from bintally.training.distributed import leave, process_group

    log_to_stderr()
    params, last = load_params(), None

    def start() -> tuple[Any, Any, Any]:
        nonlocal last
        last = prepare(params)
        return last.network, last.train, last.validation

    status = 0
    try:
        with process_group(params.launch.timeout_s) as place, disk_full_as_user_error(FOLDER):
            profile = profile_steps(params, start, place, int(os.environ["BINTALLY_PROFILED_STEPS"]), TRACE)
            assert last
            if place.is_main_process:
                write_json(PROFILE, profile | {"key": run_key(params, last.data)})
    except UserError as fault:
        print(f"diagnose: {fault}", file=sys.stderr)
        status = 1
    leave(status)


if __name__ == "__main__":
    _rank()
