"""Tables of what `byhand bench` measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from byhand.bench.scenarios import SCENARIOS
from byhand.cli.views.safe import safe_line
from byhand.cli.views.terminal import BAD, GOOD, QUIET, STRONG

Figures = Mapping[str, Any]


def print_entry(console: Console, entry: Figures) -> None:
    """One measurement: the machine's, burst against burst, cold starts, or two ways through the same work."""
    kind = "machine" if entry["scenario"] == "machine" else SCENARIOS[entry["scenario"]].kind
    if kind == "machine":
        _print_machine(console, entry)
        return
    options = "".join(f", {name}={value}" for name, value in entry["options"].items())
    title = f"{entry['model']} {entry['precision']}{options}: {SCENARIOS[entry['scenario']].about}"
    console.print()
    console.print(Text(safe_line(title), style=STRONG))
    printer = {"cold": _print_cold, "forks": _print_ways, "prefix": _print_ways, "profile": _print_profile}.get(
        kind, _print_pairs
    )
    printer(console, entry)
    for failure in entry.get("failures", ()):
        console.print(Text(safe_line(failure["sentence"]), style=BAD))


def _print_machine(console: Console, entry: Figures) -> None:
    machine, figures = entry["machine"], entry["summary"]
    features = " ".join(machine["features"])
    console.print(Text(safe_line(f"{machine['processor']}, {machine['cores']} cores, {features}"), style=QUIET))
    patterns = ", ".join(f"{name} {rate:.1f}" for name, rate in figures["bandwidth"]["patterns"].items())
    console.print(f"memory read    {figures['bandwidth']['best']:.1f} GB/s ({patterns})")
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in figures["matrix"].items())
    console.print(f"matrix product {rates} GFLOP/s, with {machine['threads']} threads")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=QUIET)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", no_wrap=True)
    return table


def _print_pairs(console: Console, entry: Figures) -> None:
    scenario, figures = SCENARIOS[entry["scenario"]], entry["summary"]
    unit = "ms/token" if scenario.kind == "decode" else "s"
    table = _table("", unit, "quartiles", "tokens/s", "of bandwidth", "byhand / it", "95 %")
    rows = [("byhand", figures["ours"]), *((each["label"], each) for each in figures["opponents"])]
    for label, each in rows:
        scale = 1000 if unit == "ms/token" else 1
        low, median, high = (each["seconds"][name] * scale for name in ("low", "median", "high"))
        share = f"{each['share']['median']:.0%}" if "share" in each else ""
        table.add_row(
            safe_line(label),
            f"{median:.3g}",
            f"{low:.3g}-{high:.3g}",
            f"{each['per_second']:.4g}",
            share,
            *_ratio(each),
        )
    console.print(table)
    bandwidth = figures["bandwidth"]
    console.print(
        Text(
            f"bandwidth around the bursts: {bandwidth['median']:.1f} GB/s ({bandwidth['low']:.1f}-", style=QUIET
        ).append(f"{bandwidth['high']:.1f})")
    )


def _ratio(figures: Figures) -> tuple[Text, Text]:
    """Under 1: byhand is faster. Coloured only where the interval leaves 1 out."""
    ratio = figures.get("ratio")
    if ratio is None:
        return Text(), Text()
    style = GOOD if ratio["high"] < 1 else BAD if ratio["low"] > 1 else QUIET
    return Text(f"{ratio['median']:.2f}", style=style), Text(f"{ratio['low']:.2f}-{ratio['high']:.2f}", style=QUIET)


def _print_cold(console: Console, entry: Figures) -> None:
    table = _table("", "first token, s", "interpreter", "open", "token", "peak MB", "without files, MB")
    for each in entry["summary"]["starts"]:
        parts, memory = each["parts"], each["memory"]
        table.add_row(
            safe_line(each["label"]),
            f"{each['seconds']['median']:.2f}",
            *(f"{parts[name]:.2f}" for name in ("interpreter", "open", "first_token")),
            f"{memory.get('peak', 0) / 1e6:.0f}",
            f"{memory.get('peak_anonymous', 0) / 1e6:.0f}",
        )
    console.print(table)
    anonymous = entry["imports"].get("anonymous", 0) / 1e6
    console.print(Text(f"byhand's imports alone hold {anonymous:.0f} MB without files", style=QUIET))


def _print_ways(console: Console, entry: Figures) -> None:
    table = _table("", "s", "quartiles")
    for name, figures in entry["summary"]["ways"].items():
        table.add_row(name, f"{figures['median']:.3f}", f"{figures['low']:.3f}-{figures['high']:.3f}")
    console.print(table)
    ratio = entry["summary"]["ratio"]
    console.print(Text(f"ratio {ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})", style=QUIET))


def _print_profile(console: Console, entry: Figures) -> None:
    """The step as it runs; then its kernels one by one, which is slower in all but shows their shares."""
    figures = entry["summary"]
    seconds = figures["seconds"]
    console.print(f"a token takes {seconds * 1000:.2f} ms behind {figures['context']} others")
    table = _table("part", "ms", "of the step", "kernels one by one", "ms", "share")
    step, split = (_parts(figures[name]) for name in ("step", "split"))
    for place in range(max(len(step), len(split))):
        table.add_row(*(step[place] if place < len(step) else ("",) * 3), *(split[place] if place < len(split) else ()))
    console.print(table)
    if figures.get("captured") is not None:
        console.print(Text(_of_captured(figures["captured"]), style=QUIET))


def _of_captured(captured: Figures) -> str:
    """How much of the model runs as one call, and what does not."""
    lines = [f"{captured['captured']} of {captured['blocks']} blocks, the last norm among them, run as one call"]
    if captured["torch"]:
        lines.append(f"between kernels torch computes {', '.join(captured['torch'])}")
    lines += [f"not captured: {why}" for why in captured["uncaptured"]]
    return "; ".join(lines)


def _parts(times: Figures) -> list[tuple[str, str, str]]:
    whole = times["step"]
    ordered = sorted(((name, time) for name, time in times.items() if name != "step"), key=lambda part: -part[1])
    return [(name, f"{time * 1000:.3f}", f"{time / whole:.1%}") for name, time in ordered]
