"""What each op of /live does. One function an op: (session, frame, handle); what it raises becomes an error frame."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any

from byhand.engine.breakpoint import Breakpoint
from byhand.engine.sequence import common_length
from byhand.jsonable import step_to_json, token_to_json
from byhand.sampling.dice import fresh_seed
from byhand.sampling.params import SamplingParams
from byhand.server.defaults import with_defaults
from byhand.server.live import views
from byhand.server.live.frames import UNTIL, Frame, FrameError, check_fields
from byhand.server.live.session import Handle, Operations, Session

if TYPE_CHECKING:
    from byhand.engine.engine import Engine
    from byhand.engine.limits import Limits
    from byhand.engine.sequence import Sequence
    from byhand.engine.worker import Worker
    from byhand.llm import LLM
    from byhand.sampling.chain import Settings
    from byhand.types import Step

Json = dict[str, Any]

TOP = 5


# Values of a frame as the engine wants them.


def params_of(llm: LLM, limits: Limits, said: Json) -> SamplingParams:
    """What the client says, else what the checkpoint asks for, else OpenAI's default; with the seed of the dice."""
    if said.get("n", 1) != 1:
        raise FrameError("invalid_value", "`n` must be 1: a live run is one run; fork it for others", param="n")
    seed = fresh_seed() if said.get("seed") is None else said["seed"]
    return with_defaults(llm, limits, {**said, "seed": seed})


def until_of(llm: LLM, said: Json) -> Breakpoint:
    """Breakpoints."""
    said = check_fields(said, UNTIL, "`until`")
    token = said.pop("token", None)
    return Breakpoint(token=None if token is None else llm.token_id(token, "until.token"), **said)


def beginning_of(worker: Worker, fields: Json) -> tuple[Settings, list[int], list[Json]]:
    """What a run begins with: its settings, and the ids and tokens of a prompt or of messages."""
    llm = worker.llm
    params = params_of(llm, worker.limits, fields.get("params", {}))
    ids = llm.encode(fields["prompt"]) if "prompt" in fields else llm.chat_ids(fields["messages"])
    return worker.check(params), ids, [token_to_json(llm.tokenizer.token(token)) for token in ids]


# Runs come and go.


async def start(session: Session, frame: Frame, handle: Handle) -> None:
    """A run: prefilled and paused."""
    fields = frame.fields
    top = fields.get("top", TOP)
    settings, ids, tokens = await asyncio.to_thread(beginning_of, session.worker, fields)
    handle.mark, handle.wants_record = frame.id, fields.get("record", False)
    # The answer stands in the queue before the first event can.
    values = {"ids": ids, "tokens": tokens, "params": settings.params.to_json()}

    def prepare(_: Engine, run: Sequence) -> None:
        handle.run = run
        session.answer(frame, "started", handle, values)

    listener = session.listener(handle)
    session.steer(handle, session.worker.open(ids, settings, listener, read_prompt=top or None, prepare=prepare))
    await handle.standing.wait()


def _seeded(params: SamplingParams, seed: int) -> SamplingParams:
    """The settings with the seed of their dice; where they name none it is the run's."""
    return params if params.seed is not None else params.replace(seed=seed)


async def load(session: Session, frame: Frame, handle: Handle) -> None:
    """A record's run, opened live: its Steps are the recorded ones, and it goes on from its end."""
    from byhand.record import Record

    llm = session.worker.llm
    record = await asyncio.to_thread(Record.from_json, frame.fields["record"])
    if record.model.digest != llm.identity.digest:
        message = (
            f"the record was made with another model ({record.model.name[:60]!r}), so its numbers are not this one's"
        )
        raise FrameError("other_model", message, param="record")
    llm.check_ids(record.ids, "record.ids")
    session.limits.check("total_tokens", len(record.ids), param="record")
    llm.check_length(len(record.ids), "record")
    settings = session.worker.check(_seeded(record.params, record.seed))

    def fill(engine: Engine, run: Sequence) -> None:
        from byhand.engine.operations import refill

        step_params = [_seeded(record.params_at(step.index), record.seed) for step in record.steps]
        refill(engine, run, list(record.steps), step_params, settings, record.choice)
        handle.run, run.finish_reason, run.stop_reason = run, record.finish_reason, record.stop_reason
        values = {**views.run_view(llm, run), "steps": [step_to_json(step) for step in run.steps]}
        session.answer(frame, "started", handle, values)

    handle.mark = frame.id
    session.steer(handle, session.worker.open(record.prompt_ids, settings, session.listener(handle), prepare=fill))
    await handle.standing.wait()


async def stop(session: Session, frame: Frame, handle: Handle) -> None:
    """End a run at once, whatever it does; its name is forgotten."""
    handle.mark = frame.id
    handle.interactive().cancel()
    session.remove_run(handle)


async def fork(session: Session, frame: Frame, handle: Handle) -> None:
    """A second run from here."""
    at, params = await _wait(handle.interactive().look(lambda _, run: (len(run.ids), run.params)))
    seed = frame.fields.get("seed")
    if seed is not None:
        params.replace(seed=seed)
    twin = session.add_run(handle.name, at)
    try:
        session.steer(twin, await _wait(handle.interactive().fork(session.listener(twin), seed)))
    except BaseException:
        session.remove_run(twin)
        raise
    view = await _wait(twin.interactive().look(lambda _, run: views.run_view(session.worker.llm, run)))
    session.answer(frame, "forked", twin, {"parent": handle.name, "at": len(view["ids"]), **view})
    twin.at = len(view["ids"])


async def switch(session: Session, frame: Frame, handle: Handle) -> None:
    """Later frames mean this run when they name none."""
    session.current = handle.name
    session.answer(frame, "switched", handle, {})


async def resume(session: Session, frame: Frame, handle: None) -> None:
    """The runs of a connection that was lost, as they were."""
    handles = await session.live.hand_over(frame.fields["token"], session)
    runs = []
    for each in handles:
        view = await _wait(each.interactive().look(lambda _, run: views.run_view(session.worker.llm, run)))
        runs.append({"run": each.name, "parent": each.parent, "at": each.at, **view})
    session.answer(frame, "resumed", None, {"runs": runs, "current": session.current})


# Tokens.


def _marks(handle: Handle, frame: Frame) -> Callable[[], None]:
    """Events from now on carry this frame's id; done on the worker's thread, in order."""

    def mark() -> None:
        handle.mark = frame.id

    return mark


async def step(session: Session, frame: Frame, handle: Handle) -> None:
    """Take some tokens, fewer where a breakpoint is met."""
    until = until_of(session.worker.llm, frame.fields.get("until", {}))
    await _wait(handle.interactive().go(frame.fields.get("count", 1), until=until, mark=_marks(handle, frame)))


async def run(session: Session, frame: Frame, handle: Handle) -> None:
    """Go on until the end, or until a breakpoint."""
    until = until_of(session.worker.llm, frame.fields.get("until", {}))
    await _wait(handle.interactive().go(inf, until=until, mark=_marks(handle, frame)))


async def force(session: Session, frame: Frame, handle: Handle) -> None:
    """Take a token of the client's."""
    token = session.worker.llm.token_id(frame.fields["token"], "token")
    await _wait(handle.interactive().go(1, force=token, mark=_marks(handle, frame)))


async def pause(session: Session, frame: Frame, handle: Handle) -> None:
    """Stand still before the next token."""
    await _wait(handle.interactive().pause(mark=_marks(handle, frame)))


# Changes.


async def _change(
    session: Session, frame: Frame, handle: Handle, operation: Callable[[Engine, Sequence], list[Step]]
) -> None:
    before: list[int] = []

    def change(engine: Engine, run: Sequence) -> list[Step]:
        before.extend(run.ids)
        return operation(engine, run)

    request = handle.interactive()
    await _wait(request.change(change, mark=_marks(handle, frame)))
    await _tell_change(session, frame, handle, before)


async def _tell_change(session: Session, frame: Frame, handle: Handle, before: list[int]) -> None:
    def view(_: Engine, run: Sequence) -> Json:
        kept = common_length(before, run.ids)
        return views.change_view(run, len(before) - kept)

    session.answer(frame, "changed", handle, await _wait(handle.interactive().look(view)))


async def insert(session: Session, frame: Frame, handle: Handle) -> None:
    """Append text or ids."""
    llm, fields = session.worker.llm, frame.fields
    if "text" in fields:
        ids = await asyncio.to_thread(llm.continuation_ids, fields["text"])
    else:
        ids = llm.check_ids(fields["ids"], "ids")

    def operation(engine: Engine, run: Sequence) -> list[Step]:
        from byhand.engine.operations import insert

        return insert(engine, run, ids)

    await _change(session, frame, handle, operation)


async def edit(session: Session, frame: Frame, handle: Handle) -> None:
    """Put another token at a position."""
    token = session.worker.llm.token_id(frame.fields["token"], "token")
    position = frame.fields["position"]

    def operation(engine: Engine, run: Sequence) -> list[Step]:
        from byhand.engine.operations import edit

        return edit(engine, run, position, token)

    await _change(session, frame, handle, operation)


async def rewind(session: Session, frame: Frame, handle: Handle) -> None:
    """Take tokens back."""

    def operation(engine: Engine, run: Sequence) -> list[Step]:
        from byhand.engine.operations import rewind

        return rewind(engine, run, frame.fields.get("count", 1))

    await _change(session, frame, handle, operation)


async def undo(session: Session, frame: Frame, handle: Handle) -> None:
    """Take the last operation back."""
    request = handle.interactive()
    before = await _wait(request.look(lambda _, run: list(run.ids)))
    await _wait(request.undo(mark=_marks(handle, frame)))
    await _tell_change(session, frame, handle, before)


async def set_params(session: Session, frame: Frame, handle: Handle) -> None:
    """Other settings for the tokens to come."""
    said = {name: value for name, value in frame.fields["params"].items() if value is not None}
    if said.get("n", 1) != 1:
        raise FrameError("invalid_value", "`n` must be 1: a live run is one run; fork it for others", param="n")
    checked = await asyncio.to_thread(SamplingParams.from_json, said)
    request = handle.interactive()
    await _wait(request.set({name: getattr(checked, name) for name in said}))
    params = await _wait(request.look(lambda _, run: run.params.to_json()))
    session.answer(frame, "set", handle, {"params": params})


# Looks.


async def logits(session: Session, frame: Frame, handle: Handle) -> None:
    """The raw logits before a recent step."""
    index, llm = frame.fields["index"], session.worker.llm
    view = await _wait(handle.interactive().look(lambda _, run: views.logits_view(llm, run, index)))
    session.answer(frame, "logits", handle, view)


async def record(session: Session, frame: Frame, handle: Handle) -> None:
    """The run's record."""
    llm = session.worker.llm
    view = await _wait(handle.interactive().look(lambda _, run: views.record_view(llm, run)))
    session.answer(frame, "record", handle, {"record": view})


async def tree(session: Session, frame: Frame, handle: None) -> None:
    """The runs of this connection, whose forks they are, and what they hold."""
    handles = [each for each in session.runs.values() if each.request is not None]

    def view() -> Json:
        states = {each.name: state for each in handles if (state := each.interactive().sequence) is not None}
        return views.pages_view(session.worker.llm.engine, states)

    found = await _wait(session.worker.call(view))
    runs = [
        {"run": each.name, "parent": each.parent, "at": each.at, **found["runs"][each.name]}
        for each in handles
        if each.name in found["runs"]
    ]
    pages = {"held": found["pages"], "shared": found["shared"]}
    session.answer(frame, "tree", None, {"runs": runs, "pages": pages, "bytes": found["bytes"]})


async def machine(session: Session, frame: Frame, handle: None) -> None:
    """This machine's limit for the model: measured between two passes when somebody asks first, and kept."""
    live, llm = session.live, session.worker.llm

    def measure() -> Json:
        from byhand.bench.wall import wall

        live.machine = live.machine or wall(llm)
        return live.machine

    session.answer(frame, "machine", None, await _wait(session.worker.call(measure)))


async def _wait(future: Any) -> Any:
    return await asyncio.wrap_future(future)


OPERATIONS: Operations = {
    "start": start,
    "load": load,
    "stop": stop,
    "fork": fork,
    "switch": switch,
    "resume": resume,
    "step": step,
    "run": run,
    "force": force,
    "pause": pause,
    "insert": insert,
    "edit": edit,
    "rewind": rewind,
    "undo": undo,
    "set": set_params,
    "logits": logits,
    "record": record,
    "tree": tree,
    "machine": machine,
}
