"""From a choice to what people see: the sequence grows by a token, its text by a piece, its endings are looked for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from time import perf_counter

from byhand.context import Context
from byhand.engine.scheduler import phase
from byhand.engine.sequence import Sequence, Work
from byhand.engine.text_state import Way
from byhand.sampling.chain import Choice
from byhand.sampling.look import Look, Scored
from byhand.text import Tokenizer
from byhand.types import Candidate, FinishReason, Position, Step, Token


class OutputProcessor:
    """Turns choices into Steps. All that it keeps lies in the sequence, and can be made again from its ids."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: frozenset[int], context: Context) -> None:
        self.tokenizer = tokenizer
        self._eos_ids = eos_ids
        self.context = context

    def append(self, sequence: Sequence, choice: Choice, started: float) -> Step:
        """Append a chosen token; the sequence may end with it. `started`: when the choice was begun."""
        sequence.ids.append(choice.id)
        text = self._read_ending(sequence, choice.id)
        step = self.make_step(sequence, choice, len(sequence.ids) - 1, text, perf_counter() - started)
        sequence.keep(step)
        sequence.work = Work()
        return step

    def score_given(self, sequence: Sequence, choice: Choice) -> Step:
        """The Step of the first id of the user's that has none yet; it is never held back, and ends nothing."""
        text, _ = sequence.text_state.push(choice.id, Way.FREE)
        position = sequence.prompt_length + len(sequence.steps)
        step = replace(self.make_step(sequence, choice, position, text, 0.0), finish_reason=None)
        sequence.keep(step)
        return step

    def position(self, sequence: Sequence, position: int, found: Look) -> Position:
        """The prediction after a prompt position."""
        if sequence.prompt_tokens is None:
            prompt = sequence.ids[: sequence.prompt_length]
            sequence.prompt_tokens = tuple(self.tokenizer.token(token) for token in prompt)
            sequence.pieces = tuple(token.text for token in sequence.prompt_tokens)
        return self.reading(position, sequence.prompt_tokens[position], found, sequence.pieces)

    def reading(self, position: int, token: Token, found: Look, pieces: tuple[str, ...]) -> Position:
        """What was found in the logits after a position, in words; `pieces` are the prompt's."""
        best = self.candidates(found.top)
        actual = self.candidates([] if found.actual is None else [found.actual])
        return Position(position, token, best[0], best, actual[0] if actual else None, found.entropy, pieces)

    def _read_ending(self, sequence: Sequence, token: int) -> str:
        """Turn the newest id into text, and find out whether it ends the run."""
        params, state = sequence.settings.params, sequence.text_state
        way = Way.PASSES if sequence.generated < params.min_tokens else Way.ENDS
        if token in params.stop_ids or (token in self._eos_ids and not params.ignore_eos):
            text, matched = state.end(token, way)
            sequence.finish_reason, sequence.stop_reason = FinishReason.STOP, token if matched is None else matched
            return text
        text, sequence.stop_reason = state.push(token, way)
        if sequence.stop_reason is not None:
            sequence.finish_reason = FinishReason.STOP
            return text
        self.check_length(sequence)
        return text + (state.flush() if sequence.finish_reason else "")

    def check_length(self, sequence: Sequence, *, only_context: bool = False) -> None:
        """End what has all the tokens it may have: the context's, and max_tokens unless `only_context`."""
        limit = None if only_context else sequence.settings.params.max_tokens
        if len(sequence.ids) >= sequence.max_length or (limit is not None and sequence.generated >= limit):
            sequence.finish_reason = FinishReason.LENGTH

    def make_step(self, sequence: Sequence, choice: Choice, position: int, text: str, seconds: float) -> Step:
        """Put a choice into words: its ids become Tokens, the pass that made it stands beside it."""
        work = sequence.work
        return Step(
            index=position - sequence.prompt_length,
            position=position,
            token=self.tokenizer.token(choice.id),
            text=text,
            logprob=choice.logprob,
            rank=choice.rank,
            entropy=choice.entropy,
            margin=choice.margin,
            tail_mass=choice.tail_mass,
            top=self.candidates(choice.top),
            chain=choice.chain,
            draw=choice.draw,
            forced=choice.forced,
            phase=phase(work.computed),
            positions_computed=work.computed,
            positions_reused=work.reused,
            cache_pages=sum(map(len, sequence.page_tables)),
            seconds=work.seconds + seconds,
            finish_reason=sequence.finish_reason,
        )

    def candidates(self, scored: Collection[Scored]) -> tuple[Candidate, ...]:
        """Candidates, with their tokens looked up."""
        tokens = self.tokenizer.tokens([one.id for one in scored])
        return tuple([Candidate(token, *one[1:]) for token, one in zip(tokens, scored, strict=True)])
