"""The pictures of docs/performance.md, as SVG; the same results give the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.report import Entry, named, of
from byhand.bench.run import CONTROL

mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "byhand",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

# Legible on white and by the colour-blind (Okabe and Ito): byhand is blue in every picture.
COLOURS = {
    "byhand": "#0072B2",
    "transformers": "#E69F00",
    "llama.cpp": "#D55E00",
    "openvino": "#009E73",
    "onnxruntime": "#CC79A7",
    "ctranslate2": "#56B4E9",
}
GREY = "#888888"


def colour(label: str) -> str:
    """An engine's colour, by the first word of its label."""
    return GREY if label == CONTROL else COLOURS.get(label.split()[0], GREY)


def ratios(entries: list[Entry]) -> Any:
    """byhand's time per token over each peer's: left of the line byhand is faster."""
    rows = [
        (f"{entry['model']} {entry['precision']}", each)
        for entry in of(entries, "decode")
        for each in entry["summary"]["opponents"]
    ]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.24 * len(rows)))
    for place, (_, each) in enumerate(rows):
        found = each["ratio"]
        axes.plot([found["low"], found["high"]], [place, place], color=colour(each["label"]), linewidth=2)
        axes.plot([found["median"]], [place], "o", color=colour(each["label"]), markersize=4)
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3) if tick >= _lowest(rows)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [f"{title}   {each['label']}" for title, each in rows])
    axes.invert_yaxis()
    axes.set_xlabel("byhand's time per token / the other's (median and 95 % interval)")
    return figure


def _lowest(rows: list[tuple[str, Entry]]) -> float:
    return 0.8 * min(each["ratio"]["low"] for _, each in rows)


def speeds(family: str, unit: str) -> Callable[[list[Entry]], Any]:
    """Tokens a second by batch or prompt length, a line for each engine, a panel for each model and precision."""

    def picture(entries: list[Entry]) -> Any:
        found = [entry for entry in entries if entry["scenario"].startswith(f"{family}-")]
        panels = list(dict.fromkeys((entry["model"], entry["precision"]) for entry in found))
        if not panels:
            return None
        figure, axes = plt.subplots(
            1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False, layout="constrained"
        )
        for panel, ax in zip(panels, axes[0], strict=True):
            _lines(ax, [entry for entry in found if (entry["model"], entry["precision"]) == panel])
            ax.set_title(" ".join(panel))
            ax.set_xlabel(unit)
            ax.set_ylabel("tokens a second")
            ax.set_ylim(bottom=0)
        return figure

    return picture


def _lines(ax: Any, entries: list[Entry]) -> None:
    lines: dict[str, dict[int, float]] = {}
    for entry in entries:
        at = int(entry["scenario"].rpartition("-")[2])
        lines.setdefault(named(entry), {})[at] = entry["summary"]["ours"]["per_second"]
        for each in entry["summary"]["opponents"]:
            if each["label"] != CONTROL:
                lines.setdefault(each["label"], {})[at] = each["per_second"]
    for label, points in lines.items():
        places = sorted(points)
        style = "--" if "(" in label else "-"
        values = [points[at] for at in places]
        ax.plot(places, values, style, marker="o", markersize=3, color=colour(label), label=label)
    places = sorted({at for points in lines.values() for at in points})
    ax.set_xscale("log", base=2)
    ax.set_xticks(places, [str(at) for at in places])
    ax.legend(fontsize=7, frameon=False)


def context(entries: list[Entry]) -> Any:
    """Milliseconds a token behind a growing context."""
    found = [entry for entry in entries if entry["scenario"].startswith("context-")]
    models = list(dict.fromkeys((entry["model"], entry["precision"]) for entry in found))
    if not models:
        return None
    figure, axes = plt.subplots(1, len(models), figsize=(4.2 * len(models), 3.2), squeeze=False, layout="constrained")
    for model, ax in zip(models, axes[0], strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for entry in found:
            if (entry["model"], entry["precision"]) == model:
                sides = [(named(entry), entry["summary"]["ours"])]
                sides += [(each["label"], each) for each in entry["summary"]["opponents"] if each["label"] != CONTROL]
                for label, figures in sides:
                    lines.setdefault(label, []).append((entry["prompt"], figures["seconds"]["median"] * 1000))
        for label, points in lines.items():
            ax.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, color=colour(label), label=label)
        ax.set_title(" ".join(model))
        ax.set_xlabel("tokens before")
        ax.set_ylabel("ms a token")
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=7, frameon=False)
    return figure


def cold(entries: list[Entry]) -> Any:
    """From the start of a process to its first token."""
    rows = [
        (f"{entry['model']} {entry['precision']}   {each['label']}", each)
        for entry in of(entries, "cold")
        for each in entry["summary"]["starts"]
    ]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.26 * len(rows)))
    shades = {"interpreter": 0.35, "open": 0.65, "first_token": 1.0}
    for place, (_, each) in enumerate(rows):
        left = 0.0
        for part, alpha in shades.items():
            width = each["parts"][part]
            axes.barh(place, width, left=left, color=colour(each["label"]), alpha=alpha)
            left += width
    axes.set_yticks(range(len(rows)), [title for title, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("seconds: interpreter, import and open, first token (from pale to full)")
    return figure


def profile(entries: list[Entry]) -> Any:
    """The parts of one token's time, as it runs and kernel by kernel."""
    rows = [
        (f"{entry['model']} {entry['precision']}, {title}", entry["summary"][way])
        for entry in of(entries, "profile")
        for way, title in (("step", "as it runs"), ("split", "kernels one by one"))
    ]
    if not rows:
        return None
    names = list(dict.fromkeys(name for _, times in rows for name in times if name != "step"))
    palette = mpl.colormaps["tab20"]
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.4 * len(rows)))
    left = [0.0] * len(rows)
    for number, name in enumerate(names):
        widths = [times.get(name, 0.0) * 1000 for _, times in rows]
        axes.barh(range(len(rows)), widths, left=left, color=palette(number), label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [title for title, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ms a token")
    axes.legend(fontsize=7, frameon=False, ncols=6, loc="upper center", bbox_to_anchor=(0.4, -0.3 / len(rows) - 0.15))
    return figure


PICTURES: dict[str, Callable[[list[Entry]], Any]] = {
    "decode": ratios,
    "batch": speeds("batch", "runs at once"),
    "prefill": speeds("prefill", "tokens of the prompt"),
    "context": context,
    "cold": cold,
    "profile": profile,
}


def draw(entries: list[Entry], folder: Path) -> None:
    """Write every picture there is something for."""
    folder.mkdir(exist_ok=True)
    for name, make in PICTURES.items():
        figure = make(entries)
        if figure is not None:
            figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
