"""What a user does to a run: insert, edit, rewind, fork, set. Each is a change to its list of ids.

They change the list and leave the computing to the passes that follow. One that is refused leaves the run as it was;
one that fails on the way is taken back with `restore`.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from byhand.engine.engine import Engine
from byhand.engine.sequence import Sequence, Snapshot, Work, common_length, own_rows
from byhand.engine.text_state import TextState
from byhand.errors import BadRequest, PromptError
from byhand.sampling.chain import Settings
from byhand.sampling.params import SamplingParams
from byhand.types import FinishReason, Step


def insert(engine: Engine, sequence: Sequence, ids: list[int]) -> list[Step]:
    """Append ids of the user's, whose Steps the next passes make; the first is made at once if its logits are there.

    An end-of-sequence token among them does not end the run: who wants that forces it as a step.
    """
    _check_room(engine, sequence, ids)
    was_finished, row = sequence.is_finished, sequence.last_logits
    if was_finished:
        _continue(engine, sequence)
    sequence.ids.extend(ids)
    steps = [] if row is None else [engine.score_given(sequence, row)]
    if row is not None:
        sequence.last_logits, sequence.work = None, Work()
    # Who writes on after max_tokens ended the run wants to go on; only the context's end is harder than that.
    engine.output.check_length(sequence, only_context=was_finished)
    return steps


def _check_room(engine: Engine, sequence: Sequence, ids: list[int]) -> None:
    """Refuse nothing at all, and more than there is room for."""
    if not ids:
        raise PromptError("nothing to insert: the text has no tokens", param="text")
    longest = sequence.max_length
    room = longest - len(sequence.ids)
    if len(ids) > room:
        context = engine.context
        raise PromptError(
            f"{len(ids)} tokens do not fit: the context of {longest} has room for {room} more",
            param="text",
            hint="; ".join(filter(None, (context.told, context.hint))) if longest == context.length else None,
        )


def edit(engine: Engine, sequence: Sequence, position: int, token: int) -> list[Step]:
    """Put `token` at `position` and let go of what came after; in the prompt it becomes a prompt token, no Step."""
    if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < len(sequence.ids):
        raise BadRequest(
            f"`position` is {position!r}; this run's tokens stand at 0 to {len(sequence.ids) - 1}", param="position"
        )
    in_prompt = position < sequence.prompt_length
    _shorten(engine, sequence, max(position, 1))
    if not in_prompt:
        return insert(engine, sequence, [token])
    sequence.ids[position:] = [token]
    sequence.prompt_length = len(sequence.ids)
    sequence.positions_read, sequence.prompt_tokens = min(sequence.positions_read, position), None
    if position == 0:
        engine.release(sequence)
        sequence.cached = 0
    sequence.last_logits = None
    _continue(engine, sequence)
    engine.output.check_length(sequence)
    return []


def rewind(engine: Engine, sequence: Sequence, count: int) -> list[Step]:
    """Take back the last `count` tokens, the prompt's too if it reaches there, never below one token."""
    length = len(sequence.ids)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < length:
        raise BadRequest(
            f"`count` is {count!r}; at most {length - 1} of this run's {length} tokens can be taken back", param="count"
        )
    with engine.lock:
        _shorten(engine, sequence, length - count)
        engine.output.check_length(sequence)
    return []


def _shorten(engine: Engine, sequence: Sequence, length: int) -> None:
    """Keep the first `length` tokens and what belongs to them; a finish reason is cleared."""
    if length < len(sequence.ids):
        _forget_from(engine, sequence, length)
    del sequence.ids[length:]
    sequence.prompt_length = min(sequence.prompt_length, length)
    sequence.cached = min(sequence.cached, sequence.computed)
    del sequence.steps[sequence.generated :]
    del sequence.step_params[sequence.generated :]
    _continue(engine, sequence)


def _forget_from(engine: Engine, sequence: Sequence, length: int) -> None:
    """Let go of what was computed from the ids past the first `length`."""
    sequence.last_logits, sequence.work = None, Work()
    engine.manager.truncate(sequence, length)
    if sequence.recent is not None:
        sequence.recent.forget([position for position in sequence.recent.positions if position >= length])


def fork(engine: Engine, sequence: Sequence, *, seed: int | None = None, choice: int | None = None) -> Sequence:
    """A run equal to its parent in everything, on the same pages; a new seed or choice number throws other dice."""
    with engine.lock:
        own_rows([sequence.last_logits])
        twin = replace(
            sequence,
            ids=list(sequence.ids),
            text_state=sequence.text_state.copy(),
            steps=list(sequence.steps),
            step_params=list(sequence.step_params),
            settings=sequence.settings if seed is None else sequence.settings.seeded(seed),
            choice=sequence.choice if choice is None else choice,
            recent=None if sequence.recent is None else sequence.recent.copy(),
        )
        engine.manager.share(sequence, twin)
        return twin


def refill(
    engine: Engine,
    sequence: Sequence,
    steps: list[Step],
    step_params: list[SamplingParams],
    settings: Settings,
    choice: int,
) -> None:
    """Give a run that holds only its prompt the steps of an earlier one, as if they had been its own."""
    sequence.ids += [step.token.id for step in steps]
    sequence.steps, sequence.step_params, sequence.choice = list(steps), step_params, choice
    sequence.settings = settings
    sequence.text_state, _ = _reread(engine, sequence)
    sequence.text = "".join(step.text for step in steps)
    sequence.last_logits = None
    engine.output.check_length(sequence)


def change_params(engine: Engine, sequence: Sequence, changes: dict[str, Any]) -> None:
    """Set parameters for the steps to come; a run that ended by its length goes on when the new length allows."""
    params = sequence.params.replace(**changes)
    settings = engine.check(params)
    with engine.lock:
        stops_changed = params.stop != sequence.params.stop
        sequence.settings = settings if params.seed is not None else settings.seeded(sequence.seed)
        if sequence.finish_reason not in (None, FinishReason.LENGTH, FinishReason.ERROR):
            return
        if sequence.is_finished or stops_changed:
            _continue(engine, sequence)
        engine.output.check_length(sequence)


def restore(engine: Engine, sequence: Sequence, before: Snapshot) -> None:
    """Put a run back as it was; what is no longer in the cache is computed again when it is needed."""
    common = common_length(sequence.ids, before.ids)
    if common < max(len(sequence.ids), len(before.ids)):
        _forget_from(engine, sequence, common)
        # An edited prompt's predictions are told anew where they differ.
        sequence.positions_read, sequence.prompt_tokens = min(sequence.positions_read, common), None
    for info in fields(before):
        value = getattr(before, info.name)
        setattr(sequence, info.name, list(value) if isinstance(value, list) else value)
    sequence.text_state = before.text_state.copy()


def drop_unfinished(engine: Engine, sequence: Sequence) -> None:
    """After an interruption at any point of a step: the ids that have their Steps, and nothing else."""
    whole = min(len(sequence.steps), len(sequence.step_params))
    del sequence.steps[whole:], sequence.step_params[whole:], sequence.ids[sequence.prompt_length + whole :]
    if not sequence.steps or not sequence.steps[-1].finish_reason:
        _continue(engine, sequence)
        engine.output.check_length(sequence)
    engine.manager.truncate(sequence, min(sequence.computed, len(sequence.ids)))
    sequence.last_logits, sequence.work = None, Work()


def _continue(engine: Engine, sequence: Sequence) -> None:
    """Clear the ending, and make the text again from the ids: nothing that was held back is lost or doubled.

    The text is cut anew among the steps, so that their texts joined are the run's.
    """
    sequence.finish_reason = sequence.stop_reason = sequence.error = None
    sequence.text_state, pieces = _reread(engine, sequence)
    sequence.text = "".join(pieces)
    steps = zip(sequence.steps, pieces, strict=True)
    sequence.steps = [replace(step, text=piece, finish_reason=None) for step, piece in steps]


def _reread(engine: Engine, sequence: Sequence) -> tuple[TextState, list[str]]:
    """The text state after its ids, and the text of each id after the prompt."""
    prompt_ids, ids = sequence.ids[: sequence.prompt_length], sequence.ids[sequence.prompt_length :]
    return TextState.reread(engine.tokenizer, prompt_ids, ids, sequence.params.stop)
