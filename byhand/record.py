"""The record of a run: one JSON document. Written, read, stepped through without a model, and checked against one.

The format is described in docs/record.md; `VERSION` counts its incompatible changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import repeat, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byhand.errors import BadRequest, RecordError
from byhand.jsonable import Json, position_to_json, step_to_json, token_to_json, usage_to_json
from byhand.sampling.params import SamplingParams
from byhand.types import Candidate, FinishReason, ModelIdentity, Step, Token, Usage

if TYPE_CHECKING:
    from byhand.llm import LLM
    from byhand.run import Run

__all__ = [
    "Difference",
    "ModelIdentity",
    "Record",
    "position_to_json",
    "replay",
    "step_to_json",
    "token_to_json",
    "usage_to_json",
]

FORMAT = "byhand.record"
VERSION = 1
# Numbers of a run made again agree this closely; batching and chunking round differently in the last bits.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Record:
    """A run as it was: settings, ids, and every Step. `settings` holds (index of the first step, parameters).

    `missing`, parallel to it, are the names of stages of the user's that the file could not hold.
    """

    model: ModelIdentity
    seed: int
    choice: int
    settings: tuple[tuple[int, SamplingParams], ...]
    prompt: tuple[Token, ...]
    steps: tuple[Step, ...] = field(repr=False)
    text: str
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    usage: Usage
    created: str
    byhand: str
    missing: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, run: Run, identity: ModelIdentity) -> Record:
        """Take down a run as it stands."""
        from byhand import __version__

        return cls(
            model=identity,
            seed=run.step_params[0].seed or 0 if run.steps else run.seed,
            choice=run.choice,
            settings=_settings(run),
            prompt=tuple(run.prompt_tokens()),
            steps=tuple(run.steps),
            text=run.text,
            finish_reason=run.finish_reason,
            stop_reason=run.stop_reason,
            usage=run.usage,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            byhand=__version__,
        )

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt's ids."""
        return [token.id for token in self.prompt]

    @property
    def ids(self) -> list[int]:
        """Prompt and continuation."""
        return self.prompt_ids + [step.token.id for step in self.steps]

    @property
    def params(self) -> SamplingParams:
        """The settings that the run ended with."""
        return self.settings[-1][1]

    def params_at(self, index: int) -> SamplingParams:
        """The settings of step `index`."""
        return [params for first, params in self.settings if first <= index][-1]

    def missing_at(self, index: int) -> tuple[str, ...]:
        """The names of the user's stages that step `index` was made with, and that are not here."""
        past = [names for (first, _), names in zip(self.settings, self.missing, strict=False) if first <= index]
        return past[-1] if past else ()

    def to_json(self) -> Json:
        """The document."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "byhand": self.byhand,
            "created": self.created,
            "model": {name: getattr(self.model, name) for name in ModelIdentity.__slots__},
            "seed": self.seed,
            "choice": self.choice,
            "settings": [
                {"from": first, "params": params.to_json() | ({"stages": list(names)} if names else {})}
                for (first, params), names in zip(self.settings, self.missing or repeat(()), strict=False)
            ],
            "prompt": [token_to_json(token) for token in self.prompt],
            "ids": self.ids,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "usage": usage_to_json(self.usage),
            "steps": [step_to_json(step) for step in self.steps],
        }

    def save(self, path: str | Path) -> None:
        """Write the document; a file that is there is replaced only when the new one is whole."""
        write_whole(path, json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a document; RecordError says in one sentence what is wrong with it."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except OSError as error:
            raise RecordError(f"cannot read the record {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise RecordError(f"{path} is no record: it is not JSON") from None
        return cls.from_json(document)

    @classmethod
    def from_json(cls, document: object) -> Record:
        """Check and take in a document."""
        from byhand.record_shapes import KIND, RECORD, VERSIONED, read

        if (form := read(KIND, document)["format"]) != FORMAT:
            raise RecordError(f"this is no byhand record: format is {str(form)[:40]!r}, not {FORMAT!r}")
        if (version := read(VERSIONED, document)["version"]) != VERSION:
            raise RecordError(f"the record is of version {version}; this byhand reads {VERSION}")
        values = read(RECORD, document)
        settings, missing = _settings_from_json(values.pop("settings"))
        ids = values.pop("ids")
        record = cls(**values, settings=settings, missing=missing)
        _check_consistent(record, ids)
        return record


def write_whole(path: str | Path, text: str) -> None:
    """Write a file. One that is there is replaced only when the new one is whole; a device or a pipe is written to."""
    target = Path(path)
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    target = target.resolve()  # a link goes on pointing where it did
    partial = target.with_name(target.name + ".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _settings(run: Run) -> tuple[tuple[int, SamplingParams], ...]:
    """Where the parameters changed. User functions cannot be written down; `to_json` keeps their names."""
    changes: list[tuple[int, SamplingParams]] = []
    for index, params in enumerate([*run.step_params, run.params]):
        if not changes or changes[-1][1] != params:
            changes.append((index, params))
    return tuple(changes)


def _settings_from_json(
    given: Iterable[Json],
) -> tuple[tuple[tuple[int, SamplingParams], ...], tuple[tuple[str, ...], ...]]:
    settings, missing = [], []
    for place, item in enumerate(given):
        missing.append(tuple(item["params"].pop("stages", ())))
        try:
            settings.append((item["from"], SamplingParams.from_json(item["params"])))
        except BadRequest as error:
            raise RecordError(f"record.settings[{place}].params: {error}") from None
    if not settings or settings[0][0] != 0:
        raise RecordError("record.settings does not begin at step 0")
    return tuple(settings), tuple(missing) if any(missing) else ()


def _check_consistent(record: Record, ids: list[int]) -> None:
    if record.choice < 0:
        raise RecordError(f"record.choice is {record.choice}; it counts from 0")
    if not record.prompt:
        raise RecordError("record.prompt is empty")
    if ids != record.ids:
        raise RecordError("record.ids are not the prompt's ids and the steps' ids, one after the other")
    for index, step in enumerate(record.steps):
        if (step.index, step.position) != (index, index + len(record.prompt)):
            raise RecordError(f"record.steps[{index}] says index {step.index}, position {step.position}")


# Replay against a model.


@dataclass(frozen=True, slots=True)
class Difference:
    """One number of one step that came out differently."""

    index: int
    field: str
    recorded: Any
    now: Any


def replay(record: Record, llm: LLM) -> list[Difference]:
    """Run a record again, teacher-forced: each step sees the recorded ids, and its numbers are compared.

    A step whose token differs is one Difference (`field` "token"), and the recorded token is put in its place. Of a
    step that was made with a stage of the user's, which a file does not hold, only the raw numbers are compared.
    """
    run = llm.start_run(record.prompt_ids, record.settings[0][1], seed=record.seed, choice=record.choice)
    differences: list[Difference] = []
    for step in record.steps:
        params = record.params_at(step.index)
        if params != run.params:
            run.set(**{name: getattr(params, name) for name in params.to_json() if name != "stages"})
        is_raw = bool(record.missing_at(step.index))
        now = _make_again(run, step, is_raw)
        differences += _compare(step, now, is_raw)
        if now.token.id != step.token.id:
            run.rewind(1)
            run.insert([step.token.id])
    return differences


def _make_again(run: Run, step: Step, is_raw: bool) -> Step:
    if step.forced or is_raw or run.finish_reason is not None:
        return run.insert([step.token.id])[-1]
    return run.step()


def _compare(then: Step, now: Step, is_raw: bool) -> Iterator[Difference]:
    pairs: list[tuple[str, Any, Any]] = [("token", then.token.id, now.token.id), ("rank", then.rank, now.rank)]
    names = ("logprob", "entropy", "margin", "tail_mass")
    pairs += [(name, getattr(then, name), getattr(now, name)) for name in names]
    if then.draw and now.draw:
        pairs += [(f"draw.{name}", getattr(then.draw, name), getattr(now.draw, name)) for name in ("u", "low", "high")]
    for place, (before, after) in enumerate(zip_longest(then.top, now.top)):
        pairs += _candidate_pairs(place, before, after, is_raw)
    for name, recorded, again in pairs:
        if not _agree(recorded, again):
            yield Difference(then.index, name, recorded, again)


def _candidate_pairs(
    place: int, then: Candidate | None, now: Candidate | None, is_raw: bool
) -> list[tuple[str, Any, Any]]:
    if then is None or now is None:
        return [(f"top[{place}]", then and then.token.id, now and now.token.id)]
    names = ("logprob",) if is_raw else ("logprob", "prob", "removed_by")
    ids = [(f"top[{place}].id", then.token.id, now.token.id)]
    return ids + [(f"top[{place}].{name}", getattr(then, name), getattr(now, name)) for name in names]


def _agree(recorded: Any, again: Any) -> bool:
    if isinstance(recorded, float) and isinstance(again, float):
        return recorded == again or abs(recorded - again) <= TOLERANCE * max(1.0, abs(recorded))
    return bool(recorded == again)
