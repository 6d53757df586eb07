"""Tokens, steps, readings, scores and runs as Python's prompt shows them: plain lines; html.py is for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp

from byhand.shown import as_repr, as_text
from byhand.types import Candidate, Completion, Position, Reading, Score, Step, Token

# Lines of a table at the prompt; print() shows a whole reading.
LINES = 40


def chance(logprob: float) -> float:
    """A probability from its logarithm; what a file claims beyond certainty, or is no number, comes out as 1 or 0."""
    return exp(min(0.0, logprob)) if logprob == logprob else 0.0


def percent(probability: float) -> str:
    """A probability in at most six columns."""
    if probability >= 0.9995:
        return "100%" if probability >= 0.99995 else ">99.9%"
    return "<0.1%" if 0 < probability < 0.001 else f"{probability:.1%}"


def clipped(text: str, width: int = 60) -> str:
    """A text as Python writes it, its beginning left out where it is long: what came last is what one looks for."""
    return repr(text) if len(text) <= width else f"…{text[-width:]!r}"


def token_repr(token: Token) -> str:
    """Token(693, ' blue')."""
    more = ", special" * token.special + f", {token.bytes!r}" * ("\ufffd" in token.text)
    return f"Token({token.id}, {token.text!r}{more})"


def candidate_repr(candidate: Candidate) -> str:
    """Candidate(' blue' 72.6%, rank 1), and what the chain made of it."""
    raw, after = percent(chance(candidate.logprob)), percent(candidate.prob)
    more = f", cut by {candidate.removed_by}" if candidate.removed_by else f", after the chain {after}" * (raw != after)
    return f"Candidate({candidate.token.text!r} {raw}, rank {candidate.rank}{more})"


def step_repr(step: Step) -> str:
    """Step(8: ' blue' 72.6%, rank 1, entropy 0.87)."""
    more = ", forced" * step.forced + (f", {step.finish_reason}" if step.finish_reason else "")
    said = f"{step.token.text!r} {percent(chance(step.logprob))}, rank {step.rank}, entropy {step.entropy:.2f}"
    return f"Step({step.position}: {said}{more})"


def step_table(step: Step) -> str:
    """The step, and under it the candidates before and after the chain; the one that was taken has a star."""
    rows = [("", "id", "token", "model", "after the chain")]
    for each in step.top:
        after = f"cut by {each.removed_by}" if each.removed_by else percent(each.prob)
        star = "*" if each.token.id == step.token.id else ""
        rows.append((star, str(each.token.id), repr(each.token.text), percent(chance(each.logprob)), after))
    return "\n".join([step_repr(step), *_columns(rows, right=(1, 3))])


def position_repr(at: Position) -> str:
    """Position(3: ' of' → ' colors' 28.6%)."""
    return f"Position({at.position}: {at.token.text!r} → {at.predicted.token.text!r} {percent(at.predicted.prob)})"


def reading_repr(reading: Reading) -> str:
    """A line for each position, the middle of a long prompt left out."""
    rows = [("", "token", "", "predicts", "", "the next one's rank")]
    for at in reading:
        chances = (repr(at.predicted.token.text), percent(at.predicted.prob))
        rows.append((str(at.position), repr(at.token.text), "→", *chances, str(at.actual.rank) if at.actual else ""))
    seconds = f", {reading.seconds:.2f} s" if reading.seconds else ""
    return "\n".join([f"Reading({len(reading)} positions{seconds})", *_shortened(_columns(rows, right=(0, 4)))])


def score_repr(score: Score) -> str:
    """The sum and the perplexity, and a line for each token."""
    rows = [("token", "logprob", "rank")]
    for token, logprob, rank in zip(score.tokens, score.logprobs, score.ranks, strict=True):
        rows.append((repr(token.text), "" if logprob is None else _nats(logprob), "" if rank is None else str(rank)))
    head = f"Score({len(score.tokens)} tokens, {_nats(score.total)} nats, perplexity {score.perplexity:.2f})"
    return "\n".join([head, *_shortened(_columns(rows, right=(1, 2)))])


def _nats(logprob: float) -> str:
    return f"{round(logprob, 2) + 0.0:.2f}"  # never -0.00


def completion_repr(done: Completion) -> str:
    """Completion(', blue', 2 tokens, length)."""
    text = repr(done.text) if len(done.text) <= 200 else f"{done.text[:200]!r}…"
    return f"Completion({text}, {len(done.ids)} tokens, {done.finish_reason})"


def run_repr(prompt: str, text: str, ids: int, computed: int, ending: str | None) -> str:
    """Run('A list of colors: red' → ', blue', 9 ids, 8 computed)."""
    more = f", {ending}" if ending else ""
    return f"Run({clipped(prompt)} → {clipped(text)}, {ids} ids, {computed} computed{more})"


def _columns(rows: Sequence[Sequence[str]], right: Iterable[int]) -> list[str]:
    """Rows whose columns stand under each other, those of `right` at their right edge."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sides = [">" if column in right else "<" for column in range(len(widths))]
    shapes = list(zip(sides, widths, strict=True))
    lines = [[f"{cell:{side}{width}}" for cell, (side, width) in zip(row, shapes, strict=True)] for row in rows]
    return [f"  {'  '.join(line)}".rstrip() for line in lines]


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= LINES:
        return lines
    left_out = len(lines) - LINES + 1
    return [*lines[: LINES // 2], f"  … {left_out:,} more …", *lines[LINES // 2 + left_out :]]


as_text.register(Step, step_table)
as_repr.register(Token, token_repr)
as_repr.register(Candidate, candidate_repr)
as_repr.register(Step, step_repr)
as_repr.register(Position, position_repr)
as_repr.register(Reading, reading_repr)
as_repr.register(Score, score_repr)
as_repr.register(Completion, completion_repr)
