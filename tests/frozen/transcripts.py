"""The files of what the server says: http.jsonl, and one for each session of /live; the first line is the versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from tests.frozen import over_http, over_live
from tests.frozen.comparing import HERE, MISSING, Report, differences, other_versions, read_lines, versions, write_lines
from tests.frozen.plain import without_bits

FOLDER = HERE / "transcripts"
PARTS = ("http", "live")


def made(part: str) -> dict[str, list[Any]]:
    """What is said now, by the file it belongs to."""
    if part == "http":
        return {"http": over_http.made()}
    return {f"live-{name}": lines for name, lines in over_live.made().items()}


def write() -> Iterator[str]:
    """Write all anew."""
    for part in PARTS:
        for name, lines in made(part).items():
            write_lines(FOLDER / f"{name}.jsonl", [versions(), *lines])
            yield f"transcripts/{name}.jsonl: {len(lines)} lines"


def check(part: str) -> Report:
    """Compare what is said now with what was; bits only where all versions are those of the file."""
    report, now = Report(), made(part)
    frozen = {path.stem for path in FOLDER.glob(f"{part}*.jsonl")}
    report.differences += [f"transcripts/{name}: in one, not in the other" for name in sorted(frozen ^ set(now))]
    for name in sorted(frozen & set(now)):
        head, *then = read_lines(FOLDER / f"{name}.jsonl")
        told = json.loads(json.dumps(now[name]))
        others = other_versions(head, versions())
        if others and then != without_bits(then):
            report.left_out.append(f"the bits in {name} were not compared: {others}")
            then, told = without_bits(then), without_bits(told)
        for number, (before, after) in enumerate(zip_longest(then, told, fillvalue=MISSING), 2):
            report.differences += differences(before, after, f"transcripts/{name}.jsonl, line {number}")
    return report
