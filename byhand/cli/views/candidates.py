"""The candidates of one step, before and after the sampling chain; and the chain itself, stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from rich.console import Console
from rich.style import Style
from rich.text import Text

from byhand.cli.views.pieces import columns, fit, piece, plain_piece
from byhand.cli.views.safe import safe_line
from byhand.cli.views.terminal import (
    CHAIN_BAR,
    MODEL_BAR,
    QUIET,
    STRONG,
    Glyphs,
    bar,
    chance,
    glyphs,
    milliseconds,
    percent,
)
from byhand.types import Candidate, ChainStage, Step


@dataclass(frozen=True, slots=True)
class _Layout:
    """Columns of the table of candidates, whether it has a second bar, and columns in all."""

    piece: int
    bar: int
    has_chain: bool
    console: int
    marks: Glyphs

    @classmethod
    def of(cls, console: Console, step: Step, top: Sequence[Candidate]) -> _Layout:
        marks = glyphs(console)
        pieces = [plain_piece(token, marks) for token in (step.token, *(each.token for each in top))]
        has_chain = _chain_matters(step)
        others = len("all others")
        width = min(max(others, min(24, console.width - 44)), max(others, *map(columns, pieces)))
        # Numbers stand beside the bars, and words in place of the second one.
        room = (console.width - width - 38) // 2 if has_chain else console.width - width - 28
        least = 3 if has_chain else 6
        return cls(width, max(least, min(30, room)), has_chain, console.width, marks)


def print_candidates(console: Console, step: Step, shown: int) -> None:
    """The best candidates as bars: what the model thinks, and what the chain leaves of it."""
    for line in candidate_lines(console, step, shown):
        console.print(line, soft_wrap=True)


def candidate_lines(console: Console, step: Step, shown: int) -> Iterator[Text]:
    """A header, one line a candidate, one for a token taken from further down, and one for all the others."""
    top = step.top[:shown]
    layout = _Layout.of(console, step, top)
    head = f"     {''.ljust(layout.piece)}  {'the model'.ljust(layout.bar + 9)}"
    after = "after the chain"
    if layout.has_chain:
        head += after if len(head + after) <= layout.console else "after"
    yield Text(head.rstrip(), style=QUIET)
    for number, candidate in enumerate(top, 1):
        yield _candidate(number, candidate, candidate.token.id == step.token.id, layout)
    taken = _taken_from_below(step, top)
    if taken is not None:
        yield _candidate(taken.rank, taken, True, layout)
    yield _others([*top, taken] if taken else top, layout)


def _chain_matters(step: Step) -> bool:
    """Whether bars after the chain say more than those before; greedy choice is said by its mark."""
    is_greedy = step.draw is None and all(candidate.prob in (0.0, 1.0) for candidate in step.top)
    return not is_greedy and any(abs(candidate.prob - chance(candidate.logprob)) > 1e-6 for candidate in step.top)


def _taken_from_below(step: Step, top: Sequence[Candidate]) -> Candidate | None:
    """The token that was taken, where it is none of the candidates shown."""
    if any(candidate.token.id == step.token.id for candidate in top):
        return None
    known = next((candidate for candidate in step.top if candidate.token.id == step.token.id), None)
    share = step.draw.high - step.draw.low if step.draw else 1.0
    return known or Candidate(step.token, step.logprob, step.rank, share)


def _candidate(number: int, candidate: Candidate, is_taken: bool, layout: _Layout) -> Text:
    marks = layout.marks
    line = Text.assemble((f"{number:>2}", QUIET), (f" {marks.mark if is_taken else ' '} ", STRONG))
    style = STRONG if is_taken else None
    line.append_text(fit(piece(candidate.token, marks, style), layout.piece, marks)).append("  ")
    line.append_text(_bar(chance(candidate.logprob), MODEL_BAR, layout))
    if layout.has_chain and candidate.removed_by is not None:
        stage = safe_line(candidate.removed_by)
        words = f"  {marks.dash} removed by {stage}"
        is_short = columns(line.plain) + columns(words) <= layout.console
        line.append(words if is_short else f"  {marks.dash} {stage}", style=QUIET)
    elif layout.has_chain:
        line.append("  ").append_text(_bar(candidate.prob, CHAIN_BAR, layout))
    return line


def _bar(probability: float, style: Style, layout: _Layout) -> Text:
    return Text.assemble(bar(probability, layout.bar, style, layout.marks), f" {percent(probability):>6}")


def _others(shown: Sequence[Candidate], layout: _Layout) -> Text:
    """What is left for every token that is not shown."""
    text = Text.assemble((f"     {'all others'.ljust(layout.piece)}  ", QUIET))
    text.append_text(_bar(_rest(chance(each.logprob) for each in shown), MODEL_BAR, layout))
    if layout.has_chain:
        text.append("  ").append_text(_bar(_rest(each.prob for each in shown), CHAIN_BAR, layout))
    return text


def _rest(probabilities: Iterable[float]) -> float:
    # Sums of float32 probabilities miss 1 by a little; less than that is nothing.
    rest = 1.0 - sum(probabilities)
    return rest if rest > 1e-6 else 0.0


def measures(step: Step, marks: Glyphs) -> Text:
    """Entropy and margin, and the dice where they were thrown."""
    text = f"entropy {step.entropy:.2f} nats {marks.dot} margin {step.margin:.2f} nats"
    if step.draw is not None:
        draw = step.draw
        text += f" {marks.dot} dice {draw.u:.3f}, in its share {draw.low:.3f} to {draw.high:.3f}"
    return Text(text, style=QUIET)


def pass_line(step: Step, marks: Glyphs) -> Text:
    """What the pass computed: "decode: 1 position, cache 8 -> 9, 3 ms"."""
    count = step.positions_computed
    positions = "1 position" if count == 1 else f"{count:,} positions"
    cache = f"cache {step.positions_reused:,} {marks.arrow} {step.positions_reused + count:,}"
    return Text(f"{safe_line(step.phase)}: {positions}, {cache}, {milliseconds(step.seconds)}", style=QUIET)


def print_chain(console: Console, step: Step, shown: int) -> None:
    """The chain as a table: a row a candidate, a column a stage, its logit after each; and what each stage kept."""
    marks = glyphs(console)
    width = min(18, max(6, *(columns(plain_piece(each.token, marks)) for each in step.top[:shown]), 6))
    size = max(7, *(len(word) for stage in step.chain for word in _stage_head(stage)), 7) + 2
    per_block = max(1, (console.width - width) // size)
    for first in range(0, len(step.chain), per_block):
        for line in _chain_block(step, step.chain[first : first + per_block], shown, width, size, marks):
            console.print(line, soft_wrap=True)
    if not step.chain:
        console.print(Text("the chain is empty: the best token is taken", style=QUIET))


def _stage_head(stage: ChainStage) -> tuple[str, str, str]:
    return safe_line(stage.name), safe_line(stage.setting), f"{stage.kept:,} kept"


def _chain_block(
    step: Step, stages: Sequence[ChainStage], shown: int, width: int, size: int, marks: Glyphs
) -> Iterator[Text]:
    """As many stages as fit beside each other."""
    for words in zip(*map(_stage_head, stages), strict=True):
        if any(words):
            yield Text(" " * width + "".join(word.rjust(size) for word in words), style=QUIET)
    for row, candidate in enumerate(step.top[:shown]):
        line = fit(piece(candidate.token, marks), width, marks)
        yield Text.assemble(line, *(_logit(stage.logits[row : row + 1], size, marks) for stage in stages))


def _logit(logits: Sequence[float], size: int, marks: Glyphs) -> Text:
    """One number of the table; a dash where the candidate was removed before."""
    if not logits or logits[0] == -inf:
        return Text(marks.dash.rjust(size), style=QUIET)
    return Text(f"{logits[0]:{size}.2f}")
