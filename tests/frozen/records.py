"""Records of the embedded model's runs: they load, save and replay for good, and are made again as they were."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from byhand import LLM, Record, Run
from byhand.replay import replay
from tests.frozen.checkpoints import open_embedded
from tests.frozen.comparing import HERE, Report, differences

FOLDER = HERE / "records"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Tom", "Sue"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


def _steps(run: Run, count: int) -> Run:
    for _ in range(count):
        run.step()
    return run


def _to_the_end(run: Run) -> Run:
    list(run)
    return run


def plain_greedy(llm: LLM) -> Run:
    """Ends by its length."""
    return _to_the_end(llm.start("Once upon a time", seed=1, max_tokens=7))


def sampled(llm: LLM) -> Run:
    """Dice, and every way to leave tokens out."""
    run = llm.start("One day", temperature=0.9, seed=3, top_k=40, top_p=0.95, min_p=0.01, typical_p=0.98)
    return _steps(run, 7)


def penalties(llm: LLM) -> Run:
    """All penalties at once."""
    penalty = {"repetition_penalty": 1.3, "presence_penalty": 0.6, "frequency_penalty": 0.4, "no_repeat_ngram_size": 2}
    run = llm.start("The cat and the cat and the", temperature=0.7, seed=8, **penalty)  # type: ignore[arg-type]
    return _steps(run, 8)


def biases(llm: LLM) -> Run:
    """Biases and bans; ends by a stop string, not before the fifth token."""
    bias = {709: 9.0, 290: 4.0}
    run = llm.start("There was a", seed=1, logit_bias=bias, banned_ids=[403, 432], min_tokens=5, stop=["tree"])
    return _to_the_end(run)


def forced(llm: LLM) -> Run:
    """Tokens of the user's: forced, inserted, and edited in the middle of them."""
    run = _steps(llm.start("The owl", temperature=0.8, seed=4), 2)
    run.step(force=" tree")
    _steps(run, 1)
    run.insert(" and so they")
    run.edit(len(run.ids) - 2, " the")
    return _steps(run, 3)


def rewound(llm: LLM) -> Run:
    """Taken back, set otherwise, gone on; the prompt's own end was edited, too."""
    run = _steps(llm.start("Daisy had a red ball", temperature=0.8, seed=12), 3)
    run.edit(run.prompt_length - 1, " hat")
    _steps(run, 5).rewind(3)
    run.set(top_k=3)
    return _steps(run, 4)


def forked(llm: LLM) -> Run:
    """A fork with a seed of its own."""
    run = _steps(llm.start("In the park", temperature=1.0, seed=21), 3)
    return _steps(run.fork(seed=22), 5)


def changed(llm: LLM) -> Run:
    """Other settings in the middle, the dice's seed among them."""
    run = _steps(llm.start("She said", temperature=0.6, seed=30), 2)
    run.set(temperature=0.0)
    _steps(run, 2).set(temperature=1.1, top_p=0.8, seed=31)
    _steps(run, 2).set(allowed_ids=[19, 17, 272, 290])
    return _steps(run, 2)


def json_schema(llm: LLM) -> Run:
    """Ends where the schema is fulfilled."""
    schema: Any = SCHEMA
    return _to_the_end(llm.start("A boy:", temperature=0.9, seed=5, json_schema=schema))


def regex(llm: LLM) -> Run:
    """Ends where the expression can go no further."""
    return _to_the_end(llm.start("The number is", temperature=1.0, seed=6, regex=r" [0-9]{2}, (red|blue)\."))


def chosen(llm: LLM) -> Run:
    """One of several texts, after a chat's template."""
    ids = llm.chat_ids("Is the sky blue?")
    return _to_the_end(llm.start(ids, temperature=1.0, seed=2, choices=["Yes, it is.", "No, it is not."]))


def ended_by_eos(llm: LLM) -> Run:
    """Ends by the end-of-sequence token, which is pushed, and comes no sooner than it may."""
    [eos] = llm.eos_ids
    return _to_the_end(llm.start("They were happy", seed=1, logit_bias={eos: 60.0}, min_tokens=4))


def reused(llm: LLM) -> Run:
    """A prompt whose first pages an earlier run has left."""
    text = "Tom and Sue went to the park. They saw a big dog. The dog was happy to see them, and so they"
    _steps(llm.start(text, seed=1), 1)
    return _steps(llm.start(text + " played", seed=1), 4)


SCRIPTS: dict[str, Callable[[LLM], Run]] = {
    script.__name__: script
    for script in (
        plain_greedy,
        sampled,
        penalties,
        biases,
        forced,
        rewound,
        forked,
        changed,
        json_schema,
        regex,
        chosen,
        ended_by_eos,
        reused,
    )
}


def taken_down(run: Run) -> Record:
    """A run's record without what is another every time: when it was made, by which byhand, and how long it took."""
    record = run.record()
    steps = tuple(dataclasses.replace(step, seconds=0.0) for step in record.steps)
    return dataclasses.replace(record, steps=steps, created="2026-01-01T00:00:00+00:00", byhand="frozen")


@cache
def made() -> dict[str, Record]:
    """All records, made now, in order, by one LLM: what one run leaves in the cache, a later one may find."""
    with open_embedded() as llm:
        return {name: taken_down(script(llm)) for name, script in SCRIPTS.items()}


@cache
def model() -> LLM:
    """The one that replays."""
    return open_embedded()


def write() -> Iterator[str]:
    """Write all anew."""
    FOLDER.mkdir(exist_ok=True)
    for name, record in made().items():
        record.save(FOLDER / f"{name}.json")
        yield f"records/{name}.json: {len(record.steps)} steps, {record.finish_reason}, {record.text!r}"


def check(name: str, place: Path) -> Report:
    """Load, save, replay and make again; `place` is a folder to write in."""
    file, report = FOLDER / f"{name}.json", Report()
    record = Record.load(file)
    record.save(place / "again.json")
    document = json.loads(file.read_text(encoding="utf-8"))
    if (place / "again.json").read_bytes() != file.read_bytes():
        report.differences.append(f"records {name}: saved again, it is another document")
    report.differences += [
        f"records {name}: replayed, {one.field} of step {one.index} was {one.recorded}, is {one.now}"
        for one in replay(record, model())
    ]
    report.differences += differences(
        document, json.loads(json.dumps(made()[name].to_json())), f"records {name}, made again"
    )
    return report
