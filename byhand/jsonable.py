"""The values of types.py as JSON: one shape for the command line, the record and the server.

Written by hand: a server says a step for every token, and pydantic takes seven times as long. `record_shapes.py` reads.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

from byhand.shown import as_dict
from byhand.types import Candidate, ChainStage, Completion, Position, Reading, Score, Step, Token, Usage

Json = dict[str, Any]


def _fields(value: Any) -> Json:
    """Every field of a dataclass under its own name."""
    return {name: getattr(value, name) for name in value.__slots__}


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
    return {**_fields(stage), "logits": [logit if isfinite(logit) else None for logit in stage.logits]}


def step_to_json(step: Step) -> Json:
    """Every field of a Step under its own name."""
    return {
        **_fields(step),
        "token": token_to_json(step.token),
        "margin": step.margin if isfinite(step.margin) else None,
        "top": [candidate_to_json(candidate) for candidate in step.top],
        "chain": [stage_to_json(stage) for stage in step.chain],
        "draw": step.draw and _fields(step.draw),
    }


def prediction_to_json(at: Position) -> Json:
    """What the model predicts after a position, and what really comes."""
    return {
        "predicted": candidate_to_json(at.predicted),
        "top": [candidate_to_json(candidate) for candidate in at.top],
        "actual": at.actual and candidate_to_json(at.actual),
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
    return _fields(usage)


def completion_to_json(done: Completion) -> Json:
    """What `run --json` prints, less the model's name."""
    values = _fields(done)
    steps = [step_to_json(step) for step in values.pop("steps")]
    return {**values, "usage": usage_to_json(done.usage), "steps": steps}


def score_to_json(score: Score) -> Json:
    """Every token with its log-probability and rank; the sum and the perplexity, null where it is not defined."""
    rows = zip(score.tokens, score.logprobs, score.ranks, strict=True)
    tokens = [{**token_to_json(token), "logprob": logprob, "rank": rank} for token, logprob, rank in rows]
    perplexity = score.perplexity if isfinite(score.perplexity) else None
    return {"tokens": tokens, "total": score.total, "perplexity": perplexity}


as_dict.register(Step, step_to_json)
as_dict.register(Reading, reading_to_json)
as_dict.register(Completion, completion_to_json)
as_dict.register(Score, score_to_json)
