"""Records of the embedded model, one for each thing that a run can go through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from byhand import LLM, Record, SamplingParams
from byhand.run import Run

FOLDER = Path(__file__).parent / "records"
PROMPT = "A list of colors: red"


def go(run: Run, count: int = 60) -> Run:
    """Take tokens, as many as there are up to `count`."""
    for _ in range(count):
        if run.finish_reason is not None:
            break
        run.step()
    return run


def steered(llm: LLM) -> Run:
    run = go(llm.start(PROMPT, max_tokens=40, seed=0), 4)
    run.step(force=" purple")
    run.insert(", and then")
    go(run, 3)
    run.edit(len(run.ids) - 2, " green")
    return go(run, 4)


def rewound(llm: LLM) -> Run:
    run = go(llm.start(PROMPT, max_tokens=30, temperature=0.9, seed=3), 9)
    run.rewind(5)
    return go(run, 9)


def forked(llm: LLM) -> Run:
    return go(go(llm.start(PROMPT, max_tokens=30, temperature=0.9, seed=3), 5).fork(seed=8), 9)


def changed(llm: LLM) -> Run:
    run = go(llm.start(PROMPT, max_tokens=30, seed=2), 4)
    run.set(temperature=1.1, top_k=30, logprobs=12)
    go(run, 4)
    run.set(frequency_penalty=1.0, stop=["the"])
    return go(run, 9)


def plain(llm: LLM, **options: Any) -> Run:
    return go(llm.start(options.pop("prompt", PROMPT), SamplingParams(**{"seed": 0, **options})))


PENALTIES = {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2, "no_repeat_ngram_size": 3}
SCHEMA = {
    "type": "object",
    "properties": {"red": {"type": "boolean"}},
    "required": ["red"],
    "additionalProperties": False,
}
MAKERS: dict[str, Callable[[LLM], Run]] = {
    "greedy": lambda llm: plain(llm, max_tokens=9),
    "sampled": lambda llm: plain(llm, max_tokens=24, temperature=0.9, top_p=0.9, min_p=0.02, seed=1),
    "penalties": lambda llm: plain(llm, max_tokens=24, **PENALTIES, logit_bias={20: 1.5, 21: -2.0}, banned_ids=(30,)),
    "stopped": lambda llm: plain(llm, prompt="Once upon a time", max_tokens=40, min_tokens=4, stop=(". ", "One day")),
    "ended": lambda llm: plain(llm, max_tokens=200),
    "schema": lambda llm: plain(llm, max_tokens=40, json_schema=SCHEMA),
    "regex": lambda llm: plain(llm, max_tokens=20, regex="[a-z, ]{6,30}[.]", temperature=0.7, seed=4),
    "steered": steered,
    "rewound": rewound,
    "forked": forked,
    "changed": changed,
}


def write(llm: LLM) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, make in MAKERS.items():
        document = make(llm).record().to_json() | {"created": "2026-11-26T00:00:00+00:00"}
        (FOLDER / f"{name}.json").write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")


def differences(llm: LLM, name: str) -> list[str]:
    """What a replay gives otherwise than the record, and what the same run gives otherwise today."""
    from byhand.record import replay

    record = Record.load(FOLDER / f"{name}.json")
    found = [f"{name}: step {each.index}: {each.field}: {each.recorded} {each.now}" for each in replay(record, llm)]
    now = MAKERS[name](llm).record()
    found += [
        f"{name}: {what}: {getattr(record, what)!r} {getattr(now, what)!r}"
        for what in ("ids", "text", "finish_reason", "stop_reason", "settings")
        if getattr(now, what) != getattr(record, what)
    ]
    if [step.text for step in now.steps] != [step.text for step in record.steps]:
        found.append(f"{name}: the steps' texts")
    return found
