"""Pictures of a diagnosis: where a step's time goes, what the curves do, what the model answers."""

import numpy as np
from matplotlib.figure import Figure

from bintally.diagnosis.evidence import Evidence
from bintally.scoring.figures import BLUE, GREY, ORANGE, confusion_picture
from bintally.scoring.metrics import confusion

PARTS = (ORANGE, BLUE, "#b7791f", "#63b3ed", "#2f855a", GREY)


def step_picture(evidence: Evidence) -> Figure:
    """A step by its parts, the operations that take longest, and the rate of the other ways it was tried in."""
    profile = evidence.profile
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    parts, operations, rates = figure.subplots(1, 3, width_ratios=[1.2, 1.5, 1.2])
    bottom = 0.0
    for (name, share), colour in zip(profile["shares"].items(), PARTS, strict=True):
        parts.bar([0], [share], bottom=[bottom], color=colour, label=f"{name}, {share:.0%}", width=0.6)
        bottom += share
    parts.set_xticks([])
    parts.set_xlim(-0.4, 3.2)
    parts.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    parts.legend(loc="center left", bbox_to_anchor=(0.22, 0.5), frameon=False, fontsize=9, reverse=True)
    parts.set_title(f"one step, {profile['step_s'] * 1000:.1f} ms")

    names = [operation["name"] for operation in profile["operations"]][::-1]
    shares = [operation["share"] for operation in profile["operations"]][::-1]
    operations.barh([name if len(name) < 30 else name[:29] + "…" for name in names], shares, color=BLUE)
    operations.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    operations.tick_params(axis="y", labelsize=8)
    operations.set_title("operations that take longest")

    ways = {f"as it is, batches of {profile['batch_size']}": profile["images_per_second"]}
    if "double_images_per_second" in profile:
        ways["twice the batch"] = profile["double_images_per_second"]
    for rank, seconds in enumerate(profile.get("alone_s", [])):
        ways[f"all ranks as quick as\nrank {rank} is alone"] = profile["batch_size"] / seconds
    rates.barh(list(ways)[::-1], list(ways.values())[::-1], color=[GREY] * (len(ways) - 1) + [BLUE])
    rates.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    rates.tick_params(axis="x", labelrotation=30)
    rates.tick_params(axis="y", labelsize=8)
    rates.set_title("images a second")
    return figure


def curves_picture(evidence: Evidence) -> Figure:
    """Loss and accuracy of training and validation, and the norm of the gradient, by epoch."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    loss, accuracy, gradient = figure.subplots(1, 3)
    epochs = [epoch["epoch"] for epoch in evidence.epochs]
    marker = "o" if len(epochs) < 3 else ""
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        for split, colour in (("train", GREY), ("validation", BLUE)):
            values = [epoch[f"{split}_{name}"] for epoch in evidence.epochs]
            axes.plot(epochs, values, color=colour, label=split, marker=marker)
        axes.set(xlabel="epoch", title=name)
    best = min(evidence.epochs, key=lambda epoch: np.nan_to_num(epoch["validation_loss"], nan=np.inf))
    loss.plot(best["epoch"], best["validation_loss"], "o", color=ORANGE, label="the epoch kept")
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if evidence.learned:
        truth = evidence.learned.scored.truth.tolist()
        share = max(truth.count(count) for count in set(truth)) / len(truth)
        accuracy.axhline(share, color=ORANGE, linestyle="--", label="the most frequent count")
    named = {
        text: line for axes in (loss, accuracy) for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False)
    gradient.plot(epochs, [epoch["gradient_norm"] for epoch in evidence.epochs], color=BLUE, marker=marker)
    gradient.set(xlabel="epoch", title="norm of the gradient", yscale="log")
    return figure


def answers_picture(evidence: Evidence) -> Figure:
    """The confusion of validation bins by the most probable count."""
    assert evidence.learned
    scored = evidence.learned.scored
    return confusion_picture(confusion(scored, "most_probable"), scored.counts, f"{len(scored.truth)} validation bins")
