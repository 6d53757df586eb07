"""A record against a model: the run is made again, and what differs is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from byhand.record import Record
from byhand.types import Candidate, Step

if TYPE_CHECKING:
    from byhand.llm import LLM
    from byhand.run import Run

# Numbers of a run made again agree this closely; batching and chunking round differently in the last bits.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Difference:
    """One number of one step that came out differently."""

    index: int
    field: str
    recorded: Any
    now: Any


def replay(record: Record, llm: LLM) -> list[Difference]:
    """Run a record again, teacher-forced: each step sees the recorded ids, and its numbers are compared.

    A step whose token differs is one Difference (`field` "token"), and the recorded token is put in its place. Of a
    step that was made with a stage of the user's, which a file does not hold, only the raw numbers are compared.
    """
    run = llm.start_run(record.prompt_ids, record.settings[0][1], seed=record.seed, choice=record.choice)
    differences: list[Difference] = []
    for step in record.steps:
        params = record.params_at(step.index)
        if params != run.params:
            run.set(**{name: getattr(params, name) for name in params.to_json() if name != "stages"})
        is_raw = bool(record.missing_at(step.index))
        now = _make_again(run, step, is_raw)
        differences += _compare(step, now, is_raw)
        if now.token.id != step.token.id:
            run.rewind(1)
            run.insert([step.token.id])
    return differences


def _make_again(run: Run, step: Step, is_raw: bool) -> Step:
    if step.forced or is_raw or run.finish_reason is not None:
        return run.insert([step.token.id])[-1]
    return run.step()


def _compare(then: Step, now: Step, is_raw: bool) -> Iterator[Difference]:
    pairs: list[tuple[str, Any, Any]] = [("token", then.token.id, now.token.id), ("rank", then.rank, now.rank)]
    names = ("logprob", "entropy", "margin", "tail_mass")
    pairs += [(name, getattr(then, name), getattr(now, name)) for name in names]
    if then.draw and now.draw:
        pairs += [(f"draw.{name}", getattr(then.draw, name), getattr(now.draw, name)) for name in ("u", "low", "high")]
    for place, (before, after) in enumerate(zip_longest(then.top, now.top)):
        pairs += _candidate_pairs(place, before, after, is_raw)
    for name, recorded, again in pairs:
        if not _agree(recorded, again):
            yield Difference(then.index, name, recorded, again)


def _candidate_pairs(
    place: int, then: Candidate | None, now: Candidate | None, is_raw: bool
) -> list[tuple[str, Any, Any]]:
    if then is None or now is None:
        return [(f"top[{place}]", then and then.token.id, now and now.token.id)]
    names = ("logprob",) if is_raw else ("logprob", "prob", "removed_by")
    ids = [(f"top[{place}].id", then.token.id, now.token.id)]
    return ids + [(f"top[{place}].{name}", getattr(then, name), getattr(now, name)) for name in names]


def _agree(recorded: Any, again: Any) -> bool:
    if isinstance(recorded, float) and isinstance(again, float):
        return recorded == again or abs(recorded - again) <= TOLERANCE * max(1.0, abs(recorded))
    return bool(recorded == again)
