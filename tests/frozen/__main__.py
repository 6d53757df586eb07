"""Write anew what is frozen, or compare: `python -m tests.frozen write|check [hashes] [records] [transcripts]`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.frozen import hashes, records, transcripts
from tests.frozen.comparing import Report

PARTS = {"hashes": hashes, "records": records, "transcripts": transcripts}


def reports(part: str) -> Iterator[Report]:
    """All comparisons of a part."""
    if part == "hashes":
        yield from (hashes.check(kind) for kind in hashes.KINDS)
    elif part == "records":
        with tempfile.TemporaryDirectory(prefix="byhand-frozen-") as place:
            yield from (records.check(name, Path(place)) for name in records.SCRIPTS)
    else:
        yield from (transcripts.check(name) for name in transcripts.PARTS)


def check(parts: list[str]) -> int:
    """Print each difference in one line, and how many there are; 1 where there is one."""
    count = 0
    for part in parts:
        for report in reports(part):
            for line in report.differences:
                print(line)
            for line in report.left_out:
                print(f"left out: {line}")
            count += len(report.differences)
    print(f"{', '.join(parts)}: {count or 'no'} difference{'s' * (count != 1)}")
    return int(count > 0)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.frozen", description=__doc__)
    parser.add_argument("what", choices=["write", "check"])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all where none is named")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    chosen = given.parts or list(PARTS)
    if given.what == "check":
        return check(chosen)
    for part in chosen:
        for line in PARTS[part].write():
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
