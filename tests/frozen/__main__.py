"""`python -m tests.frozen write` or `check`, and words that choose: hashes, records, transcripts."""

from __future__ import annotations

import sys

from byhand import LLM
from tests.frozen import hashes, records, transcripts
from tests.serving import served


def main(action: str, words: list[str]) -> int:
    """0: all is as it was, or was written."""
    words = words or ["hashes", "records", "transcripts"]
    found: list[str] = []
    if "hashes" in words:
        for kind in hashes.KINDS:
            if action == "write":
                hashes.path_of(kind).parent.mkdir(exist_ok=True)
                hashes.path_of(kind).write_text("\n".join(hashes.made_now(kind, [])) + "\n")
            elif other := hashes.other_machine(kind):
                print(f"{kind}: not compared: {other}")
            else:
                found += hashes.differences(kind, [])
    if "records" in words:
        if action == "write":
            records.write(LLM())
        else:
            found += [line for name in records.MAKERS for line in records.differences(LLM(), name)]
    if "transcripts" in words:
        for server in served(LLM(), may_keep_runs=True):
            if action == "write":
                transcripts.write(server)
            else:
                found += [
                    line
                    for name in ("answers", *transcripts.SESSIONS)
                    for line in transcripts.differences(server, name)
                ]
    print(*found, sep="\n")
    return 1 if found else 0


sys.exit(main(sys.argv[1], sys.argv[2:]))
