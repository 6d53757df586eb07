"""What a user does to a run: insert, edit, rewind, fork, set. Each is a change to its list of ids.

An operation that is refused, or that finds no pages, leaves the run as it was. `begin_insert` and `begin_edit` change
the list and leave the computing to later passes: what a scheduler needs; `insert` and `edit` compute at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from byhand.engine.engine import Engine
from byhand.engine.output import TextState
from byhand.engine.state import RunState, Snapshot, Work, own_rows
from byhand.errors import BadRequest, PromptError, without_frames
from byhand.sampling.params import SamplingParams
from byhand.types import FinishReason, Step


def insert(engine: Engine, run: RunState, ids: Sequence[int]) -> list[Step]:
    """Append ids of the user's in one pass, and say of each what the model thought of it.

    An end-of-sequence token among them does not end the run: who wants that forces it as a step.
    """
    check_insert(engine, run, ids)
    with engine.lock, _or_as_before(engine, run):
        begin_insert(engine, run, ids)
        settle(engine, run)
        return run.steps[-len(ids) :]


def check_insert(engine: Engine, run: RunState, ids: Sequence[int]) -> None:
    """Refuse nothing at all, and more than there is room for."""
    if not ids:
        raise PromptError("nothing to insert: the text has no tokens", param="text")
    longest = engine.longest(run)
    room = longest - len(run.ids)
    if len(ids) > room:
        context = engine.context
        raise PromptError(
            f"{len(ids)} tokens do not fit: the context of {longest} has room for {room} more",
            param="text",
            hint="; ".join(filter(None, (context.told, context.hint))) if longest == context.length else None,
        )


def begin_insert(engine: Engine, run: RunState, ids: Sequence[int]) -> list[Step]:
    """Append checked ids whose Steps the next passes make; the first is made at once where its logits are there."""
    was_finished, kept = run.is_finished, run.kept
    if was_finished:
        _continue(engine, run)
    run.ids.extend(ids)
    steps = [] if kept is None else [engine.tell(run, kept)]
    if kept is not None:
        run.kept, run.work = None, Work()
    # Who writes on after max_tokens ended the run wants to go on; only the context's end is harder than that.
    engine.check_length(run, only_context=was_finished)
    return steps


def settle(engine: Engine, run: RunState) -> None:
    """Compute a run to its end, here and now; what fails on the way is raised."""
    engine.prefill([run])
    if run.error is not None:
        raise without_frames(run.error)


@contextmanager
def _or_as_before(engine: Engine, run: RunState) -> Iterator[None]:
    before = run.snapshot()
    try:
        yield
    except BaseException:  # also when the user interrupts a long insert
        restore(engine, run, before)
        raise


def restore(engine: Engine, run: RunState, before: Snapshot) -> None:
    """Put a run back as it was; what is no longer in the cache is computed again when it is needed."""
    same = next((i for i, (a, b) in enumerate(zip(run.ids, before.ids, strict=False)) if a != b), None)
    common = min(len(run.ids), len(before.ids)) if same is None else same
    if common < max(len(run.ids), len(before.ids)):
        run.kept, run.work = None, Work()
        engine.pager.truncate(run, common)
        if run.recent is not None:
            run.recent.forget(position for position in run.recent.positions if position >= common)
    for info in fields(before):
        value = getattr(before, info.name)
        setattr(run, info.name, list(value) if isinstance(value, list) else value)
    run.text_state = before.text_state.copy()


def rewind(engine: Engine, run: RunState, count: int) -> None:
    """Take back the last `count` tokens, the prompt's too if it reaches there, never below one token."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < len(run.ids):
        raise BadRequest(
            f"`count` is {count!r}; at most {len(run.ids) - 1} of this run's {len(run.ids)} tokens can be taken back",
            param="count",
        )
    with engine.lock:
        shorten(engine, run, len(run.ids) - count)
        engine.check_length(run)


def shorten(engine: Engine, run: RunState, length: int) -> None:
    """Keep the first `length` tokens and what belongs to them; a finish reason is cleared."""
    if length < len(run.ids):
        run.kept, run.work = None, Work()
        engine.pager.truncate(run, length)
        if run.recent is not None:
            run.recent.forget(place for place in run.recent.positions if place >= length)
    del run.ids[length:]
    run.prompt_length = min(run.prompt_length, length)
    run.cached = min(run.cached, run.computed)
    del run.steps[run.generated :]
    del run.step_params[run.generated :]
    _continue(engine, run)


def edit(engine: Engine, run: RunState, position: int, token: int) -> list[Step]:
    """Put `token` at `position` and let go of what came after; in the prompt it becomes a prompt token, no Step."""
    check_position(run, position)
    with engine.lock, _or_as_before(engine, run):
        begin_edit(engine, run, position, token)
        settle(engine, run)
        return run.steps[position - run.prompt_length :] if position >= run.prompt_length else []


def check_position(run: RunState, position: int) -> None:
    """Refuse what is no place of the run."""
    if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < len(run.ids):
        raise BadRequest(
            f"`position` is {position!r}; this run's tokens stand at 0 to {len(run.ids) - 1}", param="position"
        )


def begin_edit(engine: Engine, run: RunState, position: int, token: int) -> list[Step]:
    """Change the list of ids; the next passes make the Step, or read the changed prompt."""
    in_prompt = position < run.prompt_length
    shorten(engine, run, max(position, 1))
    if not in_prompt:
        return begin_insert(engine, run, [token])
    run.ids[position:] = [token]
    run.prompt_length = len(run.ids)
    run.watched, run.prompt_tokens = min(run.watched, position), None
    if position == 0:
        engine.release(run)
    run.kept = None
    _continue(engine, run)
    engine.check_length(run)
    return []


def fork(engine: Engine, run: RunState, *, seed: int | None = None, choice: int | None = None) -> RunState:
    """A run equal to its parent in everything, on the same pages; a new seed or choice number throws other dice."""
    with engine.lock:
        engine.collect()
        own_rows([run.kept])
        twin = replace(
            run,
            ids=list(run.ids),
            text_state=run.text_state.copy(),
            steps=list(run.steps),
            step_params=list(run.step_params),
            params=run.params if seed is None else run.params.replace(seed=seed),
            choice=run.choice if choice is None else choice,
            recent=None if run.recent is None else run.recent.copy(),
        )
        engine.pager.share(run, twin)
        return twin


def refill(
    engine: Engine,
    run: RunState,
    steps: list[Step],
    step_params: list[SamplingParams],
    params: SamplingParams,
    choice: int,
) -> None:
    """Give a run that holds only its prompt the steps of an earlier one, as if they had been its own."""
    run.ids += [step.token.id for step in steps]
    run.steps, run.step_params, run.params, run.choice = list(steps), step_params, params, choice
    prompt_ids, ids = run.ids[: run.prompt_length], run.ids[run.prompt_length :]
    run.text_state, _ = TextState.reread(engine.tokenizer, prompt_ids, ids, params.stop)
    run.text = "".join(step.text for step in steps)
    run.kept = None
    engine.check_length(run)


def change_params(engine: Engine, run: RunState, changes: dict[str, Any]) -> None:
    """Set parameters for the steps to come; a run that ended by its length goes on when the new length allows."""
    params = run.params.replace(**changes)
    params.check_vocabulary(engine.model.vocab_size)
    engine.grammars.check(params)
    with engine.lock:
        stops_changed = params.stop != run.params.stop
        run.params = params if params.seed is not None else params.replace(seed=run.seed)
        if run.finish_reason not in (None, FinishReason.LENGTH, FinishReason.ERROR):
            return
        if run.is_finished or stops_changed:
            _continue(engine, run)
        engine.check_length(run)


def _continue(engine: Engine, run: RunState) -> None:
    """Clear the ending, and make the text again from the ids: nothing that was held back is lost or doubled.

    The text is cut anew among the steps, so that their texts joined are the run's.
    """
    run.finish_reason = run.stop_reason = run.error = None
    prompt_ids, ids = run.ids[: run.prompt_length], run.ids[run.prompt_length :]
    run.text_state, pieces = TextState.reread(engine.tokenizer, prompt_ids, ids, run.params.stop)
    run.text = "".join(pieces)
    run.steps = [replace(step, text=piece, finish_reason=None) for step, piece in zip(run.steps, pieces, strict=True)]
