"""Steps, readings and scores as tables of pandas: a row for each token. pandas is taken where it is installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from byhand.errors import MissingExtra
from byhand.reprs import chance
from byhand.shown import as_frame
from byhand.types import Completion, Position, Reading, Score, Step


def steps_frame(steps: Iterable[Step]) -> Any:
    """A row for each token after the prompt."""
    names = ("logprob", "rank", "entropy", "margin", "tail_mass", "forced", "phase", "seconds")
    return _frame(
        ("position", "id", "token", "prob", *names),
        (
            [at.position, at.token.id, at.token.text, chance(at.logprob), *(getattr(at, n) for n in names)]
            for at in steps
        ),
    )


def reading_frame(positions: Iterable[Position]) -> Any:
    """A row for each position of the prompt: what was predicted after it, and what became of the real next token."""
    names = ("position", "id", "token", "predicted_id", "predicted", "prob", "entropy", "next_logprob", "next_rank")
    rows = (
        [
            *(at.position, at.token.id, at.token.text),
            *(at.predicted.token.id, at.predicted.token.text, at.predicted.prob, at.entropy),
            *((at.actual.logprob, at.actual.rank) if at.actual else (None, None)),
        ]
        for at in positions
    )
    return _frame(names, rows)


def score_frame(score: Score) -> Any:
    """A row for each token."""
    rows = zip(score.tokens, score.logprobs, score.ranks, strict=True)
    return _frame(("id", "token", "logprob", "rank"), ([at.id, at.text, logprob, rank] for at, logprob, rank in rows))


def _frame(columns: Iterable[str], rows: Iterable[list[Any]]) -> Any:
    try:
        pandas = import_module("pandas")
    except ImportError:
        raise MissingExtra("to_pandas needs pandas", hint="pip install pandas") from None
    return pandas.DataFrame(list(rows), columns=list(columns))


as_frame.register(Completion, lambda done: steps_frame(done.steps))
as_frame.register(Reading, reading_frame)
as_frame.register(Score, score_frame)
