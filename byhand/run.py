"""`Run`: the handle on one decoding run. Step it, force it, insert, edit, rewind, fork, record."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Unpack

from byhand import html, reprs
from byhand.engine import operations
from byhand.engine.engine import Engine
from byhand.engine.events import Event, Failed, Listener
from byhand.engine.inline import InlineDriver
from byhand.engine.interactive import InteractiveHandle, Operation
from byhand.engine.sequence import Sequence
from byhand.record import Record
from byhand.types import Completion, FinishReason, Step, Token, Usage
from byhand.version import __version__

if TYPE_CHECKING:
    from byhand.prompts import Prompt
    from byhand.sampling.chain import Settings
    from byhand.sampling.options import AllOptions
    from byhand.sampling.params import SamplingParams
    from byhand.texts import Texts


class Run:
    """A list of token ids that grows. Made by `LLM.start`: prefilled, paused, no token chosen yet.

    Iterating steps until the run finishes. A run that is no longer referred to gives its pages back.
    """

    def __init__(self, llm: Texts, driver: InlineDriver, handle: InteractiveHandle, failures: list[Exception]) -> None:
        self._llm = llm
        self._driver = driver
        self._engine: Engine = driver.engine
        self._handle = handle
        self._sequence: Sequence = handle.request_in(driver.loop).sequence
        self._failures = failures  # what the handle's listener was told
        # Neither the handle nor its listener holds the Run: when it is garbage, its pages are let go.
        weakref.finalize(self, self._engine.retire, handle.cancel).atexit = False

    @classmethod
    def open(cls, llm: Texts, ids: list[int], settings: Settings, *, choice: int = 0) -> Run:
        """A run of checked ids, of which nothing is computed yet."""
        failures: list[Exception] = []
        driver = llm.driver
        handle = driver.open(ids, settings, choice=choice, listener=_failures_into(failures))
        return cls(llm, driver, handle, failures)

    @classmethod
    def borrow(cls, llm: Texts, sequence: Sequence) -> Run:
        """A view of a run that another owns: it can be looked at; when it is garbage, nothing happens to the pages."""
        view = cls.__new__(cls)
        view._llm, view._engine, view._sequence = llm, llm.engine, sequence
        return view

    # What it is.

    @property
    def ids(self) -> list[int]:
        """Prompt and continuation."""
        return list(self._sequence.ids)

    @property
    def prompt_ids(self) -> list[int]:
        """The ids before the first generated token."""
        return self._sequence.ids[: self._sequence.prompt_length]

    @property
    def prompt_length(self) -> int:
        """How many of `ids` are the prompt."""
        return self._sequence.prompt_length

    @property
    def text(self) -> str:
        """What came after the prompt, as far as it is safe to show."""
        return self._sequence.text

    @property
    def computed(self) -> int:
        """How many of `ids` have their keys and values in the cache."""
        return self._sequence.computed

    @property
    def steps(self) -> list[Step]:
        """One Step for each token after the prompt."""
        return list(self._sequence.steps)

    @property
    def step_params(self) -> list[SamplingParams]:
        """The settings under which each of `steps` was made."""
        return list(self._sequence.step_params)

    @property
    def params(self) -> SamplingParams:
        """The settings of the steps to come, with the seed of the dice, drawn when none was given."""
        return self._sequence.params

    @property
    def seed(self) -> int:
        """The seed of the dice."""
        return self._sequence.seed

    @property
    def choice(self) -> int:
        """Which of `n` choices this is; it is part of the dice."""
        return self._sequence.choice

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the run ended, or None."""
        return self._sequence.finish_reason

    @property
    def stop_reason(self) -> int | str | None:
        """The id or the string that stopped it."""
        return self._sequence.stop_reason

    @property
    def usage(self) -> Usage:
        """Tokens of the prompt, of the continuation, and of the prompt as found in the prefix index."""
        state = self._sequence
        return Usage(state.prompt_length, state.generated, state.cached)

    # What can be done with it.

    def prefill(self) -> None:
        """Process the prompt; no token is chosen."""
        self._change(lambda engine, sequence: [])

    def step(self, force: int | str | None = None) -> Step:
        """Take one token: the sampler's, or `force` (an id, or text that is exactly one token)."""
        forced = None if force is None else self._llm.token_id(force, "force")
        self._driver.take(self._handle, forced)
        self._raise_failure()
        return self._sequence.steps[-1]

    def insert(self, text: Prompt) -> list[Step]:
        """Append text (or ids) of yours; each of its tokens is a forced Step."""
        ids = self._llm.continuation_ids(text)
        return self._change(lambda engine, sequence: operations.insert(engine, sequence, ids))

    def edit(self, position: int, token: int | str) -> list[Step]:
        """Put a token at `position` and let go of everything after it."""
        number = self._llm.token_id(token, "token")
        return self._change(lambda engine, sequence: operations.edit(engine, sequence, position, number))

    def _change(self, operation: Operation) -> list[Step]:
        asked: list[Future[list[Step]]] = []
        self._driver.run_to_rest(self._handle, lambda: asked.append(self._handle.change(operation)))
        self._raise_failure()
        return asked[0].result()

    def _raise_failure(self) -> None:
        if self._failures:
            error = self._failures[-1]
            self._failures.clear()
            raise error

    def rewind(self, count: int = 1) -> None:
        """Take back the last `count` tokens."""
        operations.rewind(self._engine, self._sequence, count)

    def fork(self, seed: int | None = None) -> Run:
        """A second run from here, on the same pages; with a `seed`, its dice differ."""
        failures: list[Exception] = []
        twin = self._handle.fork(_failures_into(failures), seed).result()
        return Run(self._llm, self._driver, twin, failures)

    def set(self, **params: Unpack[AllOptions]) -> None:
        """Change settings for the steps to come, by SamplingParams' names."""
        operations.change_params(self._engine, self._sequence, dict(params))

    def __iter__(self) -> Iterator[Step]:
        while not self._sequence.is_finished:
            yield self.step()

    def stop(self) -> None:
        """End the run here, with `FinishReason.ABORT`; its pages are let go."""
        if not self._sequence.is_finished:
            self._sequence.finish_reason = FinishReason.ABORT
        self._engine.release(self._sequence)

    def completion(self) -> Completion:
        """The run so far as a Completion."""
        state = self._sequence
        return Completion(
            prompt_ids=self.prompt_ids,
            ids=state.ids[state.prompt_length :],
            text=state.text,
            finish_reason=state.finish_reason or FinishReason.ABORT,
            stop_reason=state.stop_reason,
            steps=self.steps,
            usage=self.usage,
        )

    def record(self) -> Record:
        """Everything about this run as a document that can be saved, replayed and checked."""
        return Record(
            model=self._llm.identity,
            seed=self.step_params[0].seed or 0 if self.steps else self.seed,
            choice=self.choice,
            settings=self._settings(),
            prompt=tuple(self.prompt_tokens()),
            steps=tuple(self.steps),
            text=self.text,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            usage=self.usage,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            byhand=__version__,
        )

    def _settings(self) -> tuple[tuple[int, SamplingParams], ...]:
        """Where the parameters changed. User functions cannot be written down; the record's file keeps their names."""
        changes: list[tuple[int, SamplingParams]] = []
        for index, params in enumerate([*self.step_params, self.params]):
            if not changes or changes[-1][1] != params:
                changes.append((index, params))
        return tuple(changes)

    def to_dict(self) -> dict[str, Any]:
        """What `run --json` prints; a run that has not ended has None as its finish_reason."""
        return {"model": self._llm.name, **self.completion().to_dict(), "finish_reason": self.finish_reason}

    def to_pandas(self) -> Any:
        """A DataFrame of a row for each token after the prompt, where pandas is installed."""
        return self.completion().to_pandas()

    def __len__(self) -> int:
        return len(self._sequence.ids)

    def __repr__(self) -> str:
        prompt = self._llm.tokenizer.decode(self.prompt_ids)
        return reprs.run_repr(prompt, self.text, len(self), self.computed, self.finish_reason)

    def _repr_html_(self) -> str:
        return html.run_html(self.prompt_tokens(), self.steps)

    def prompt_tokens(self) -> list[Token]:
        """The prompt as Tokens."""
        return [self._llm.tokenizer.token(token) for token in self.prompt_ids]


def _failures_into(failures: list[Exception]) -> Listener:
    def listen(event: Event) -> None:
        if isinstance(event, Failed):
            failures.append(event.error)

    return listen
