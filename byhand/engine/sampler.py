"""From logits to a choice: the rows of a pass with their best tokens found, and each sequence's own chain and dice."""

from __future__ import annotations

import torch

from byhand.engine.sequence import LogitsRow, Sequence
from byhand.models import Model
from byhand.sampling.chain import Choice, choose
from byhand.sampling.constraints import Grammars
from byhand.sampling.look import Look, look


class Sampler:
    """What chooses: it keeps nothing of a sequence, whose dice are a function of (seed, choice, position)."""

    def __init__(self, model: Model, eos_ids: frozenset[int], grammars: Grammars) -> None:
        self._model = model
        self._eos_ids = eos_ids
        self._grammars = grammars

    def rows_of(self, wanted: list[tuple[Sequence, int]], logits: torch.Tensor) -> list[LogitsRow]:
        """(rows, vocab) logits, one row for each (sequence, position): the best of all rows are found together."""
        counts = [
            (position < sequence.prompt_length and sequence.read_prompt) or sequence.settings.best
            for sequence, position in wanted
        ]
        return list(map(LogitsRow, logits.unbind(), self._model.kernels.topk_lse(logits, counts)))

    def choose(self, sequence: Sequence, row: LogitsRow, position: int, forced: int | None) -> Choice:
        """Apply the sequence's chain and dice to the logits that stand before `position`."""
        return choose(
            row.logits,
            sequence.ids if position == len(sequence.ids) else sequence.ids[:position],
            sequence.prompt_length,
            sequence.settings,
            eos_ids=self._eos_ids,
            position=position,
            choice=sequence.choice,
            seed=sequence.settings.params.seed or 0,
            forced=forced,
            grammars=self._grammars,
            found=row.topk_lse(sequence.settings.best, self._model.kernels.topk_lse),
        )

    def look(self, row: LogitsRow, top: int, follows: int | None) -> Look:
        """The best `top` of a row, and where the token that follows stands among them."""
        [found] = look(row.logits[None], top, [follows], [row.topk_lse(top, self._model.kernels.topk_lse)])
        return found
