"""Writes the tables of docs/performance.md from results, and the pictures beside it.

python -m benchmarks.report docs/performance.md benchmarks/results/*.json

A table stands between two marks, `<!-- NAME: begin -->` and `<!-- NAME: end -->`; all else is people's.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from byhand.bench import results
from byhand.bench.run import CONTROL
from byhand.bench.scenarios import SCENARIOS
from byhand.html import between_marks

Entry = dict[str, Any]
Row = Sequence[str]

# The most of the best peer's time per token that byhand may take: (model, precision) → ratio.
TARGETS = {
    ("smol-135m", "fp32"): 0.85,
    ("smol-135m", "bf16"): 0.85,
    ("smol-135m", "int8"): 0.75,
    ("smol-135m", "int4"): 0.75,
    ("llama-1b", "bf16"): 1.0,
    ("llama-1b", "int8"): 1.0,
    ("llama-1b", "int4"): 1.0,
}


def table(header: Row, rows: Iterable[Row]) -> str:
    """A table in Markdown, or a line that says there is nothing."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *body]) if body else "(not measured yet)"


def of(entries: Iterable[Entry], *names: str) -> list[Entry]:
    """The entries of these scenarios."""
    return [entry for entry in entries if entry["scenario"] in names]


def ratio(figures: Entry | None) -> str:
    """`0.84 (0.82–0.87)`."""
    if figures is None:
        return "–"
    found = figures["ratio"]
    return f"{found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f})"


def opponent(entry: Entry, label: str | None) -> Entry | None:
    """An opponent's figures by its label."""
    return next((each for each in entry["summary"]["opponents"] if each["label"] == label), None)


def named(entry: Entry) -> str:
    """byhand, with the options it was opened with."""
    options = ", ".join(f"{name}={value}" for name, value in entry["options"].items())
    return f"byhand ({options})" if options else "byhand"


def _percent(figures: Entry) -> str:
    return f"{figures['share']['median']:.0%}" if "share" in figures else ""


# The tables, in the page's order.


def machine(entries: list[Entry]) -> str:
    """Date, processor, limits and versions."""
    rows = []
    for entry in of(entries, "machine"):
        about, figures = entry["machine"], entry["summary"]
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in figures["matrix"].items())
        rows += [
            ("date", entry["when"] + " UTC"),
            ("processor", f"{about['processor']}, {about['cores']} cores: {' '.join(about['features'])}"),
            ("memory read", f"{figures['bandwidth']['best']:.0f} GB/s, {about['threads']} threads"),
            ("matrix product, GFLOP/s", rates),
            ("versions", ", ".join(f"{name} {number}" for name, number in about["versions"].items())),
        ]
    versions = {
        facts["version"] for entry in entries for facts in entry.get("contestants", []) if facts["label"] != CONTROL
    }
    rows += [("measured", version) for version in sorted(versions)]
    return table(("", ""), rows)


def decode(entries: list[Entry]) -> str:
    """Decoding at batch 1 against the best peer, with target and control."""
    rows = []
    for entry in of(entries, "decode"):
        figures = entry["summary"]
        best, target = figures["best_peer"], TARGETS.get((entry["model"], entry["precision"]))
        rows.append(
            (
                entry["model"],
                entry["precision"],
                named(entry),
                f"{figures['ours']['seconds']['median'] * 1000:.2f}",
                _percent(figures["ours"]),
                best or "–",
                ratio(opponent(entry, best)),
                "" if target is None else f"≤ {target:.2f}",
                ratio(opponent(entry, CONTROL)),
            )
        )
    header = ("model", "precision", "", "ms a token", "of the probe", "best peer", "byhand's time / its", "target")
    return table((*header, "control"), rows)


def peers(entries: list[Entry]) -> str:
    """Every peer's decoding, and what it really runs."""
    rows = []
    for entry in of(entries, "decode"):
        runs = {facts["label"]: facts["runs"] for facts in entry["contestants"]}
        for each in entry["summary"]["opponents"]:
            if each["label"] != CONTROL:
                time = f"{each['seconds']['median'] * 1000:.2f}"
                about = (each["label"], runs[each["label"]], time, _percent(each), ratio(each))
                rows.append((entry["model"], entry["precision"], *about))
    header = ("model", "precision", "engine", "what it runs", "ms a token", "of the probe", "byhand's time / its")
    return table(header, rows)


def per_second(*scenarios: str) -> Callable[[list[Entry]], str]:
    """A table of tokens a second: a row for each engine, a column for each scenario."""

    def whole(entries: list[Entry]) -> str:
        found = of(entries, *scenarios)
        columns = [name for name in scenarios if of(found, name)]
        cells: dict[tuple[str, str, str], dict[str, str]] = {}
        for entry in found:
            key = entry["model"], entry["precision"]
            ours = entry["summary"]["ours"]
            cells.setdefault((*key, named(entry)), {})[entry["scenario"]] = f"**{ours['per_second']:.0f}**"
            for each in entry["summary"]["opponents"]:
                name = f"{each['label']} against {named(entry)}" if entry["options"] else each["label"]
                text = f"{each['per_second']:.0f}; {ratio(each)}"
                cells.setdefault((*key, name), {})[entry["scenario"]] = text
        rows = [(*key, *(row.get(name, "") for name in columns)) for key, row in sorted(cells.items())]
        return table(("model", "precision", "engine", *columns), rows)

    return whole


def mean_context(entry: Entry) -> float:
    """Tokens before a token of byhand's bursts: they follow each other in one run."""
    return float(entry["prompt"] + len(entry["pairs"]) * entry["new"] / 2)


def attention_rate(short: Entry, long: Entry) -> tuple[float, float]:
    """GB/s at which the cache's further bytes are read in the further time, and its share of the probed bandwidth."""
    token_bytes = long["contestants"][0]["cache_token_bytes"]
    seconds = long["summary"]["ours"]["seconds"]["median"] - short["summary"]["ours"]["seconds"]["median"]
    rate = token_bytes * (mean_context(long) - mean_context(short)) / seconds / 1e9
    probe = statistics.mean(entry["summary"]["bandwidth"]["median"] for entry in (short, long))
    return rate, rate / probe


def context(entries: list[Entry]) -> str:
    """Time per token behind a growing context, and the speed of attention alone."""
    groups: dict[tuple[str, str, str], dict[str, Entry]] = {}
    names = ("context-128", "context-1024", "context-4096")
    for entry in of(entries, *names):
        groups.setdefault((entry["model"], entry["precision"], named(entry)), {})[entry["scenario"]] = entry
    rows: list[Row] = []
    for key, group in groups.items():
        times = [_milliseconds(group.get(name), None) for name in names]
        rate = ""
        if names[0] in group and names[2] in group:
            found, share = attention_rate(group[names[0]], group[names[2]])
            # Two bursts minutes apart: a bandwidth that moved between them can be more than what they differ by.
            rate = f"{found:.0f} GB/s, {share:.0%}" if 0 < share <= 1 else "lost in the bandwidth's moves"
        rows.append((*key, *times, rate))
        labels = dict.fromkeys(each["label"] for entry in group.values() for each in entry["summary"]["opponents"])
        others = [label for label in labels if label != CONTROL]
        rows += [(*key[:2], label, *(_milliseconds(group.get(name), label) for name in names), "") for label in others]
    return table(("model", "precision", "engine", *names, "attention's reading, of the probe"), rows)


def _milliseconds(entry: Entry | None, label: str | None) -> str:
    if entry is None:
        return ""
    figures = entry["summary"]["ours"] if label is None else opponent(entry, label)
    return "" if figures is None else f"{figures['seconds']['median'] * 1000:.2f}"


def cold(entries: list[Entry]) -> str:
    """Cold starts and memory."""
    rows = []
    for entry in of(entries, "cold"):
        for each in entry["summary"]["starts"]:
            parts, memory = each["parts"], each["memory"]
            name = named(entry) if each["label"] == "byhand" else each["label"]
            times = (f"{parts[part]:.2f}" for part in ("interpreter", "open", "first_token"))
            sizes = (f"{memory.get(kind, 0) / 1e6:.0f}" for kind in ("peak", "peak_anonymous"))
            key = (entry["model"], entry["precision"], name)
            rows.append((*key, f"{each['seconds']['median']:.2f}", *times, *sizes, memory_over(entry, memory)))
    header = ("model", "precision", "engine", "first token, s", "interpreter", "open", "token", "peak, MB")
    return table((*header, "without files, MB", "over the imports / what must be held"), rows)


def memory_over(entry: Entry, memory: Entry) -> str:
    """byhand's peak without files, less its imports', over its tensors that no file backs and its cache's pages."""
    if "held" not in memory:
        return ""
    above, needed = memory["peak_anonymous"] - entry["imports"]["anonymous"], memory["held"] + memory["cache"]
    return f"{above / 1e6:.0f} / {needed / 1e6:.0f} MB = {above / needed:.2f}" if needed else ""


def ways(entries: list[Entry]) -> str:
    """Forks against runs of their own, a prompt read before against a new one."""
    rows = []
    for entry in of(entries, "forks", "prefix"):
        (first, one), (second, other) = entry["summary"]["ways"].items()
        about = (f"{first}: {one['median']:.3f} s", f"{second}: {other['median']:.3f} s", ratio(entry["summary"]))
        rows.append((entry["model"], entry["precision"], SCENARIOS[entry["scenario"]].about, *about))
    return table(("model", "precision", "", "", "", "ratio"), rows)


def profile(entries: list[Entry]) -> str:
    """Where a token's time goes."""
    rows = []
    for entry in of(entries, "profile"):
        for way, title in (("step", "as it runs"), ("split", "kernels one by one")):
            times = entry["summary"][way]
            parts = sorted(((name, time) for name, time in times.items() if name != "step"), key=lambda part: -part[1])
            text = ", ".join(f"{name} {time * 1000:.2f} ms ({time / times['step']:.1%})" for name, time in parts)
            rows.append((entry["model"], entry["precision"], title, f"{times['step'] * 1000:.2f}", text))
    return table(("model", "precision", "", "ms a token", "parts"), rows)


def quality(measured: Sequence[Entry]) -> str:
    """What quantising costs: results of benchmarks/quality.py."""
    rows = [
        (model["name"], f"{kind}, {text['tokens']} tokens", name, *_quality(figures))
        for document in measured
        for model in document["models"]
        for kind, text in model["texts"].items()
        for name, figures in text["variants"].items()
    ]
    return table(("model", "text", "weights", "perplexity", "KL from float32, nats", "same best token"), rows)


def _quality(figures: Entry) -> Row:
    return f"{figures['perplexity']:.3f}", f"{figures['kl']:.2g}", f"{figures['same_best']:.1%}"


TABLES: dict[str, Callable[[list[Entry]], str]] = {
    "machine": machine,
    "decode": decode,
    "peers": peers,
    "batch": per_second("batch-4", "batch-8", "batch-16", "batch-32"),
    "prefill": per_second("prefill-128", "prefill-512", "prefill-2048"),
    "context": context,
    "cold": cold,
    "ways": ways,
    "profile": profile,
}


def load(files: Iterable[Path]) -> tuple[list[Entry], list[Entry]]:
    """The entries of `byhand bench`, and what benchmarks/quality.py measured."""
    entries: list[Entry] = []
    measured: list[Entry] = []
    for file in files:
        document = json.loads(file.read_bytes())
        if document.get("format") == results.FORMAT:
            entries += results.read(file)
        elif "models" in document:
            measured.append(document)
    return entries, measured


def renewed(page: str, entries: list[Entry], measured: Sequence[Entry] = ()) -> str:
    """A page whose tables are made anew."""
    made = {name: make(entries) for name, make in TABLES.items()} | {"quality": quality(measured)}
    for name, text in made.items():
        page = between_marks(page, name, text)
    return page


def main() -> None:
    """Write the tables, and the pictures where matplotlib is installed."""
    page, *files = (Path(word) for word in sys.argv[1:])
    entries, measured = load(files)
    page.write_text(renewed(page.read_text(encoding="utf-8"), entries, measured), encoding="utf-8")
    try:
        from benchmarks.plots import draw
    except ImportError:
        print("no pictures: matplotlib is not installed (pip install 'byhand[bench]')", file=sys.stderr)
        return
    draw(entries, page.parent / "performance")


if __name__ == "__main__":
    main()
