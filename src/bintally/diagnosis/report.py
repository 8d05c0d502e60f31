"""The report of a diagnosis: a page, JSON, and a summary on the terminal."""

import math
from dataclasses import asdict
from html import escape
from pathlib import Path

from bintally.diagnosis.evidence import Evidence
from bintally.diagnosis.figures import curves_figure, step_figure
from bintally.diagnosis.rules import Finding, Severity
from bintally.files import write_json, write_text
from bintally.page import document, picture
from bintally.params import Params
from bintally.scoring.figures import confusion_figure
from bintally.scoring.metrics import confusion

COLOURS = ("#718096", "#2f855a", "#2b6cb0", "#b7791f", "#c53030")  # in the order of Severity
STYLE = "".join(
    f".{severity.name}{{color:{colour};font-weight:600}}" for severity, colour in zip(Severity, COLOURS, strict=True)
)


def verdict(evidence: Evidence) -> str:
    """Return one sentence on whether the model is learning."""
    if evidence.failure:
        return f"The run failed: {evidence.failure}."
    if not evidence.epochs:
        return "There is no run of these parameters, so whether the model learns is unknown."
    first, last = evidence.epochs[0], evidence.epochs[-1]
    losses = f"training loss {first['train_loss']:.3f} → {last['train_loss']:.3f} in {len(evidence.epochs)} epochs"
    if evidence.outputs is None:
        return f"The run is under way or was stopped: {losses}."
    (accuracy, low), majority = evidence.outputs.accuracy(), evidence.outputs.majority_share()
    return (
        f"The model is {'learning' if low > majority else 'NOT learning'}: {losses}, validation accuracy "
        f"{accuracy:.1%} (95 % interval from {low:.1%}), against {majority:.1%} for the majority class."
    )


def write_report(folder: Path, evidence: Evidence, findings: list[Finding], params: Params) -> None:
    """Write ``index.html`` and ``diagnosis.json``."""
    summary = {
        "verdict": verdict(evidence),
        "worst": max(finding.severity for finding in findings).name.lower(),
        "findings": [asdict(finding) | {"severity": finding.severity.name.lower()} for finding in findings],
        "profile": evidence.profile,
        "epochs": [
            # None: JSON has finite numbers alone.
            {name: value if math.isfinite(value) else None for name, value in epoch.items()}
            for epoch in evidence.epochs
        ],
    }
    write_json(folder / "diagnosis.json", summary)
    write_text(folder / "index.html", document("Diagnosis", _body(evidence, findings, params), STYLE))


def print_report(evidence: Evidence, findings: list[Finding]) -> None:
    """Print the verdict and every finding, the worst first."""
    print(f"\n{verdict(evidence)}\n")
    for finding in _worst_first(findings):
        print(f"{finding.severity.label:12} {finding.rule:28} {finding.evidence}")
        if finding.severity > Severity.FINE:
            print(f"{'':12} {'':28} → {finding.advice}")


def _body(evidence: Evidence, findings: list[Finding], params: Params) -> str:
    figures = []
    if "time_shares" in evidence.profile:
        caption = "Under the profiler, except for the images per second."
        figures.append(("Time of a step", step_figure(evidence), caption))
    if evidence.epochs:
        figures.append(("Curves", curves_figure(evidence), "Of the last run with these parameters."))
    if evidence.outputs:
        predictions = evidence.outputs.predictions
        table, title = confusion(predictions, "most_probable"), f"{len(predictions.truth)} validation bins"
        figure = confusion_figure(table, predictions.counts, title)
        figures.append(("Predictions", figure, "The most probable count, not calibrated."))
    figures_html = "".join(
        f"<h2>{heading}</h2><figure>{picture(figure, heading)}<figcaption>{caption}</figcaption></figure>"
        for heading, figure, caption in figures
    )
    rows = "".join(
        f'<tr><td class="{finding.severity.name}">{finding.severity.label}</td><td>{escape(finding.rule)}</td>'
        f"<td>{escape(finding.evidence)}</td><td>{escape(finding.condition)}</td>"
        f"<td>{escape(finding.advice) if finding.severity > Severity.FINE else ''}</td></tr>"
        for finding in _worst_first(findings)
    )
    profile, model = evidence.profile, params.model
    return (
        f"<h1>Diagnosis</h1><p><b>{escape(verdict(evidence))}</b></p>"
        f"<p>{escape(str(profile['device']))}, {profile['ranks']} ranks of {profile['threads']} threads, "
        f"{escape(model.backbone)} at {model.image_size} pixels, model.trainable: {model.trainable}, "
        f"{profile['steps']} steps timed. "
        'Open <a href="trace.json.gz">trace.json.gz</a> in a trace viewer, such as ui.perfetto.dev or '
        "chrome://tracing.</p>"
        "<table><thead><tr><th>severity</th><th>rule</th><th>evidence</th><th>condition</th><th>advice</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{figures_html}"
    )


def _worst_first(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: -finding.severity)
