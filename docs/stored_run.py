"""Makes byhand/web/run.json, the real run of the embedded model on which the page opens: python docs/stored_run.py."""

from __future__ import annotations

import json
from pathlib import Path

from byhand import LLM, Record, SamplingParams
from byhand.jsonable import position_to_json

TARGET = Path(__file__).parents[1] / "byhand" / "web" / "run.json"
PROMPT = "A list of colors: red"
WARM_UP = "The dog and the cat"
SETTINGS = SamplingParams(temperature=0.8, top_p=0.95, seed=11, max_tokens=60)
RUNS = 9


def recorded(llm: LLM, prompt: str) -> Record:
    """One run to its end."""
    run = llm.start(prompt, SETTINGS)
    for _ in run:
        pass
    return run.record()


def stored_run(llm: LLM) -> dict[str, object]:
    """The record of a run on a warm engine, the middle one of a few by its time; beside it what `read` says."""
    for _ in range(RUNS):
        recorded(llm, WARM_UP)
    records = sorted((recorded(llm, PROMPT) for _ in range(RUNS)), key=lambda one: sum(s.seconds for s in one.steps))
    record = records[RUNS // 2].to_json()
    positions = [position_to_json(at) for at in llm.read(PROMPT, top=5)]
    readings = [{**at, "token": record["prompt"][at["position"]]} for at in positions]
    return {"record": record, "readings": readings}


if __name__ == "__main__":
    document = stored_run(LLM())
    TARGET.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")
