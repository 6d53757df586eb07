"""What a user does to a run: insert, edit, rewind, fork, set. Each is a change to its list of ids.

A value that is refused changes nothing, and an insert that finds no pages leaves the run as it was; an edit has let go
of what came after its place by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from byhand.engine.engine import Engine
from byhand.engine.state import RunState, TextState, Work
from byhand.errors import BadRequest, ByhandError, PromptError
from byhand.sampling.chain import Choice
from byhand.types import FinishReason, Step


def insert(engine: Engine, run: RunState, ids: Sequence[int]) -> list[Step]:
    """Append ids of the user's in one pass, and say of each what the model thought of it.

    An end-of-sequence token among them does not end the run: who wants that forces it as a step.
    """
    if not ids:
        raise PromptError("nothing to insert: the text has no tokens", param="text")
    room = engine.context_length - len(run.ids)
    if len(ids) > room:
        raise PromptError(
            f"{len(ids)} tokens do not fit: the context of {engine.context_length} has room for {room} more",
            param="text",
        )
    with engine.lock:
        length, was_finished = len(run.ids), run.is_finished
        before = run.finish_reason, run.stop_reason, run.text, run.text_state, run.steps
        if was_finished:
            _continue(engine, run)
        try:
            steps = _insert(engine, run, ids)
        except ByhandError:
            shorten(engine, run, length)
            run.finish_reason, run.stop_reason, run.text, run.text_state, run.steps = before
            raise
        # Who writes on after max_tokens ended the run wants to go on; only the context's end is harder than that.
        engine.check_length(run, only_context=was_finished)
        return steps


def _insert(engine: Engine, run: RunState, ids: Sequence[int]) -> list[Step]:
    first = len(run.ids)
    engine.prefill([run])
    assert run.kept is not None
    choices = [engine.choose(run, run.kept, first, ids[0])]
    works = [run.work]
    run.kept, run.work = None, Work()
    run.ids.extend(ids)
    for start, logits in engine.logit_blocks(run, publish=True):
        for position, row in enumerate(logits, start + 1):
            if position == len(run.ids):
                run.kept = row.clone()
            else:
                choices.append(engine.choose(run, row, position, run.ids[position]))
                works.append(run.work)
    return [_keep_inserted(engine, run, choice, first + i, works[i]) for i, choice in enumerate(choices)]


def _keep_inserted(engine: Engine, run: RunState, choice: Choice, position: int, work: Work) -> Step:
    step = engine.make_step(run, choice, position, run.text_state.insert(choice.id), work, 0.0)
    engine.keep_step(run, step)
    return step


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
    del run.ids[length:]
    run.prompt_length = min(run.prompt_length, length)
    run.cached = min(run.cached, run.computed)
    del run.steps[run.generated :]
    del run.step_params[run.generated :]
    _continue(engine, run)


def edit(engine: Engine, run: RunState, position: int, token: int) -> list[Step]:
    """Put `token` at `position` and let go of what came after; in the prompt it becomes a prompt token, no Step."""
    if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < len(run.ids):
        raise BadRequest(
            f"`position` is {position!r}; this run's tokens stand at 0 to {len(run.ids) - 1}", param="position"
        )
    with engine.lock:
        in_prompt = position < run.prompt_length
        shorten(engine, run, max(position, 1))
        if not in_prompt:
            return insert(engine, run, [token])
        run.ids[position:] = [token]
        run.prompt_length = len(run.ids)
        if position == 0:
            engine.release(run)
        run.kept = None
        _continue(engine, run)
        engine.prefill([run])
        return []


def fork(engine: Engine, run: RunState, *, seed: int | None = None, choice: int | None = None) -> RunState:
    """A run equal to its parent in everything, on the same pages; a new seed or choice number throws other dice."""
    with engine.lock:
        engine.collect()
        twin = replace(
            run,
            ids=list(run.ids),
            text_state=run.text_state.copy(),
            steps=list(run.steps),
            step_params=list(run.step_params),
            params=run.params if seed is None else run.params.replace(seed=seed),
            choice=run.choice if choice is None else choice,
        )
        engine.pager.share(run, twin)
        return twin


def change_params(engine: Engine, run: RunState, changes: dict[str, Any]) -> None:
    """Set parameters for the steps to come; a run that ended by its length goes on when the new length allows."""
    params = run.params.replace(**changes)
    params.check_vocabulary(engine.model.vocab_size)
    with engine.lock:
        stops_changed = params.stop != run.params.stop
        run.params = params if params.seed is not None else params.replace(seed=run.seed)
        if run.finish_reason not in (None, FinishReason.LENGTH):
            return
        if run.is_finished or stops_changed:
            _continue(engine, run)
        engine.check_length(run)


def _continue(engine: Engine, run: RunState) -> None:
    """Clear the ending, and make the text again from the ids: nothing that was held back is lost or doubled.

    The text is cut anew among the steps, so that their texts joined are the run's.
    """
    run.finish_reason = run.stop_reason = None
    prompt_ids, ids = run.ids[: run.prompt_length], run.ids[run.prompt_length :]
    run.text_state, pieces = TextState.reread(engine.tokenizer, prompt_ids, ids, run.params.stop)
    run.text = "".join(pieces)
    run.steps = [replace(step, text=piece, finish_reason=None) for step, piece in zip(run.steps, pieces, strict=True)]
