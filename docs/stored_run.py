"""Makes byhand/web/run.json, the real run of the embedded model on which the page opens: python docs/stored_run.py."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = Path(__file__).parents[1] / "byhand" / "web" / "run.json"
PROMPT = "A list of colors: red"
SETTINGS = ["--temperature", "0.8", "--top-p", "0.95", "--seed", "11", "--max-tokens", "60"]


def byhand(*arguments: str) -> str:
    """Standard output of a byhand command."""
    done = subprocess.run([sys.executable, "-m", "byhand", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def stored_run(prompt: str = PROMPT, settings: list[str] = SETTINGS) -> dict[str, object]:
    """The record of `byhand run`, and beside it what `byhand read` says of the same prompt."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        byhand("run", prompt, *settings, "--record", str(file))
        record = json.loads(file.read_text(encoding="utf-8"))
    positions = json.loads(byhand("read", prompt, "--json", "--top", "5"))["positions"]
    readings = [{**at, "token": record["prompt"][at["position"]]} for at in positions]
    return {"record": record, "readings": readings}


if __name__ == "__main__":
    document = stored_run()
    TARGET.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")
