"""The record of a run: one JSON document, written, read, and stepped through without a model.

The format is described in docs/record.md; `VERSION` counts its incompatible changes. replay.py checks one on a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

from byhand.errors import BadRequest, RecordError
from byhand.jsonable import Json, step_to_json, token_to_json, usage_to_json
from byhand.sampling.params import SamplingParams
from byhand.types import FinishReason, ModelIdentity, Step, Token, Usage

FORMAT = "byhand.record"
VERSION = 1


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
