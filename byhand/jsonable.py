"""The values of types.py as JSON and back: one shape for the command line, the record and the server."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite
from types import UnionType
from typing import Any, TypeVar

from byhand.errors import RecordError
from byhand.types import (
    Candidate,
    ChainStage,
    Completion,
    Draw,
    FinishReason,
    Position,
    Reading,
    Score,
    Step,
    Token,
    Usage,
)

Json = dict[str, Any]
T = TypeVar("T")


def token_to_json(token: Token) -> Json:
    """{id, text, bytes: [ints], special}."""
    return {"id": token.id, "text": token.text, "bytes": list(token.bytes), "special": token.special}


def candidate_to_json(candidate: Candidate) -> Json:
    """The token's fields and the candidate's own, flat."""
    return {
        **token_to_json(candidate.token),
        "logprob": candidate.logprob,
        "rank": candidate.rank,
        "prob": candidate.prob,
        "removed_by": candidate.removed_by,
    }


def stage_to_json(stage: ChainStage) -> Json:
    """A removed candidate's logit, -inf, is null: JSON has no infinity."""
    logits = [logit if isfinite(logit) else None for logit in stage.logits]
    return {"name": stage.name, "setting": stage.setting, "kept": stage.kept, "logits": logits}


def step_to_json(step: Step) -> Json:
    """Every field of a Step under its own name."""
    draw = step.draw
    return {
        "index": step.index,
        "position": step.position,
        "token": token_to_json(step.token),
        "text": step.text,
        "logprob": step.logprob,
        "rank": step.rank,
        "entropy": step.entropy,
        "margin": step.margin if isfinite(step.margin) else None,
        "tail_mass": step.tail_mass,
        "top": [candidate_to_json(candidate) for candidate in step.top],
        "chain": [stage_to_json(stage) for stage in step.chain],
        "draw": None if draw is None else {"u": draw.u, "low": draw.low, "high": draw.high},
        "forced": step.forced,
        "phase": step.phase,
        "positions_computed": step.positions_computed,
        "positions_reused": step.positions_reused,
        "cache_pages": step.cache_pages,
        "seconds": step.seconds,
        "finish_reason": step.finish_reason,
    }


def prediction_to_json(at: Position) -> Json:
    """What the model predicts after a position, and what really comes."""
    return {
        "predicted": candidate_to_json(at.predicted),
        "top": [candidate_to_json(candidate) for candidate in at.top],
        "actual": None if at.actual is None else candidate_to_json(at.actual),
        "entropy": at.entropy,
    }


def position_to_json(at: Position) -> Json:
    """What `read --json` and `/read` print for one position."""
    return {"position": at.position, "id": at.token.id, "text": at.token.text, **prediction_to_json(at)}


def reading_to_json(reading: Reading) -> Json:
    """A list of its positions."""
    return {"positions": [position_to_json(at) for at in reading]}


def usage_to_json(usage: Usage) -> Json:
    """Prompt, completion and cached tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def completion_to_json(done: Completion) -> Json:
    """What `run --json` prints, less the model's name."""
    return {
        "prompt_ids": done.prompt_ids,
        "ids": done.ids,
        "text": done.text,
        "finish_reason": done.finish_reason,
        "stop_reason": done.stop_reason,
        "usage": usage_to_json(done.usage),
        "steps": [step_to_json(step) for step in done.steps],
    }


def score_to_json(score: Score) -> Json:
    """Every token with its log-probability and rank; the sum and the perplexity, null where it is not defined."""
    rows = zip(score.tokens, score.logprobs, score.ranks, strict=True)
    tokens = [{**token_to_json(token), "logprob": logprob, "rank": rank} for token, logprob, rank in rows]
    perplexity = score.perplexity if isfinite(score.perplexity) else None
    return {"tokens": tokens, "total": score.total, "perplexity": perplexity}


class Reader:
    """Reads a JSON object field by field; what is missing or of another kind is a RecordError that says where."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping):
            raise RecordError(f"{where} is no object")
        self._value = value
        self.where = where

    def get(self, name: str, kind: type[T]) -> T:
        """The field `name`, which must be of this type; whole numbers pass for floats, booleans for no number."""
        value = self.raw(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise RecordError(f"{self.where}.{name} is {str(value)[:40]!r}, not {kind.__name__}")
        return value

    def maybe(self, name: str, kind: type[T]) -> T | None:
        """The same, where null is allowed."""
        return None if self.raw(name) is None else self.get(name, kind)

    def raw(self, name: str) -> Any:
        """The field as it stands."""
        if name not in self._value:
            raise RecordError(f"{self.where} has no `{name}`")
        return self._value[name]

    def objects(self, name: str) -> list[Reader]:
        """The field as a list of objects."""
        return [Reader(item, f"{self.where}.{name}[{i}]") for i, item in enumerate(self.get(name, list))]

    def items(self, name: str, kind: type[T] | UnionType) -> list[Any]:
        """The field as a list whose items are all of this kind."""
        values = self.get(name, list)
        for i, item in enumerate(values):
            if not isinstance(item, kind) or isinstance(item, bool):
                raise RecordError(f"{self.where}.{name}[{i}] is {str(item)[:40]!r}")
        return values


def token_from_json(at: Reader) -> Token:
    """A Token; bytes must be 0 to 255."""
    values = at.items("bytes", int)
    if not all(0 <= value <= 255 for value in values):
        raise RecordError(f"{at.where}.bytes holds a value outside 0 to 255")
    return Token(at.get("id", int), at.get("text", str), bytes(values), at.get("special", bool))


def candidate_from_json(at: Reader) -> Candidate:
    """A Candidate."""
    return Candidate(
        token_from_json(at),
        at.get("logprob", float),
        at.get("rank", int),
        at.get("prob", float),
        at.maybe("removed_by", str),
    )


def stage_from_json(at: Reader) -> ChainStage:
    """A ChainStage; null is -inf again."""
    logits = tuple(-inf if logit is None else float(logit) for logit in at.items("logits", int | float | None))
    return ChainStage(at.get("name", str), at.get("setting", str), at.get("kept", int), logits)


def draw_from_json(at: Reader) -> Draw:
    """A Draw."""
    return Draw(at.get("u", float), at.get("low", float), at.get("high", float))


def finish_from_json(at: Reader) -> FinishReason | None:
    """A FinishReason or None."""
    value = at.maybe("finish_reason", str)
    if value is not None and value not in list(FinishReason):
        raise RecordError(f"{at.where}.finish_reason is {value!r}; known: {', '.join(FinishReason)}")
    return None if value is None else FinishReason(value)


def step_from_json(at: Reader) -> Step:
    """A Step; every stage of its chain must speak of every candidate."""
    margin = at.maybe("margin", float)
    chain = tuple(stage_from_json(item) for item in at.objects("chain"))
    top = tuple(candidate_from_json(item) for item in at.objects("top"))
    for place, stage in enumerate(chain):
        if len(stage.logits) != len(top):
            raise RecordError(f"{at.where}.chain[{place}].logits has {len(stage.logits)} entries, top has {len(top)}")
    return Step(
        index=at.get("index", int),
        position=at.get("position", int),
        token=token_from_json(Reader(at.raw("token"), f"{at.where}.token")),
        text=at.get("text", str),
        logprob=at.get("logprob", float),
        rank=at.get("rank", int),
        entropy=at.get("entropy", float),
        margin=inf if margin is None else margin,
        tail_mass=at.get("tail_mass", float),
        top=top,
        chain=chain,
        draw=None if at.raw("draw") is None else draw_from_json(Reader(at.raw("draw"), f"{at.where}.draw")),
        forced=at.get("forced", bool),
        phase=at.get("phase", str),
        positions_computed=at.get("positions_computed", int),
        positions_reused=at.get("positions_reused", int),
        cache_pages=at.get("cache_pages", int),
        seconds=at.get("seconds", float),
        finish_reason=finish_from_json(at),
    )
