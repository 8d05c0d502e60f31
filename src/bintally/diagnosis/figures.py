"""Figures of a diagnosis: the time of a step, and the curves."""

import numpy as np
from matplotlib.figure import Figure

from bintally.diagnosis.evidence import Evidence
from bintally.scoring.figures import BLUE, GREEN, GREY, ORANGE

PART_COLOURS = (ORANGE, BLUE, "#b7791f", "#63b3ed", GREEN, GREY)
MAX_NAME = 30  # characters of an operation


def step_figure(evidence: Evidence) -> Figure:
    """The parts of a step, the slowest operations, and the images per second in other configurations."""
    profile = evidence.profile
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    parts, operations, rates = figure.subplots(1, 3, width_ratios=[1.2, 1.5, 1.2])
    bottom = 0.0
    for (name, share), colour in zip(profile["time_shares"].items(), PART_COLOURS, strict=True):
        parts.bar([0], [share], bottom=[bottom], color=colour, label=f"{name}, {share:.0%}", width=0.6)
        bottom += share
    parts.set_xticks([])
    parts.set_xlim(-0.4, 3.2)
    parts.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    parts.legend(loc="center left", bbox_to_anchor=(0.22, 0.5), frameon=False, fontsize=9, reverse=True)
    parts.set_title(f"one step, {profile['step_s'] * 1000:.1f} ms")

    slowest = profile["operations"][::-1]
    names = [one["name"] if len(one["name"]) < MAX_NAME else one["name"][: MAX_NAME - 1] + "…" for one in slowest]
    operations.barh(names, [one["share"] for one in slowest], color=BLUE)
    operations.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    operations.tick_params(axis="y", labelsize=8)
    operations.set_title("slowest operations")

    rate_of = {f"these parameters, batches of {profile['batch_size']}": profile["images_per_second"]}
    if "double_images_per_second" in profile:
        rate_of["batches twice as large"] = profile["double_images_per_second"]
    for rank, seconds in enumerate(profile.get("solo_step_s", [])):
        rate_of[f"all ranks as fast as\nrank {rank} without the others"] = profile["batch_size"] / seconds
    rates.barh(list(rate_of)[::-1], list(rate_of.values())[::-1], color=[GREY] * (len(rate_of) - 1) + [BLUE])
    rates.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    rates.tick_params(axis="x", labelrotation=30)
    rates.tick_params(axis="y", labelsize=8)
    rates.set_title("images per second")
    return figure


def curves_figure(evidence: Evidence) -> Figure:
    """Loss and accuracy in training and validation, and the norm of the gradient, by epoch."""
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
    loss.plot(best["epoch"], best["validation_loss"], "o", color=ORANGE, label="best epoch")
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if evidence.outputs:
        accuracy.axhline(evidence.outputs.majority_share(), color=ORANGE, linestyle="--", label="majority class")
    lines = {str(line.get_label()): line for axes in (loss, accuracy) for line in axes.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)
    gradient.plot(epochs, [epoch["gradient_norm"] for epoch in evidence.epochs], color=BLUE, marker=marker)
    gradient.set(xlabel="epoch", title="norm of the gradient", yscale="log")
    return figure
