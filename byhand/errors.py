"""Every error byhand raises on purpose. A message is one sentence that names the field, the value and the limit.

ByhandError
├── BadRequest            a value the user gave: `param` names it
│   ├── PromptError       empty, an id out of range, text that is not one token
│   │   └── PromptTooLong     more tokens than the model reads
│   ├── TemplateError     a chat template that fails, loops or is missing
│   └── LimitExceeded     more than this server gives to one request
├── CheckpointError       a model that cannot be opened
│   ├── CheckpointNotFound    no such folder, file or hub id
│   ├── UnknownArchitecture   a model_type that has no file in models/
│   ├── BadConfig             config.json cannot be read or contradicts itself
│   ├── BadWeights            truncated, missing, unexpected or of the wrong shape
│   └── HubError              gated, offline, or refused by the hub
├── RecordError           a file that is no record, or is of another version
├── RunFinished           a step asked of a run that has ended
├── NotFinite             logits that are NaN or infinite: nothing can be chosen
├── OutOfPages            the KV cache has no room left
├── TimeLimit             a run had all the seconds it may have
├── Busy                  no place for one more run now: try again later
├── NotServing            the engine is starting, draining or closed
└── MissingExtra          an optional dependency is not installed
"""

from __future__ import annotations

from copy import copy


class ByhandError(Exception):
    """The root: `str(error)` is a sentence for people, `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadRequest(ByhandError):
    """A value the user gave is wrong; `param` is the field's name."""

    def __init__(self, message: str, *, param: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


class PromptError(BadRequest):
    """A prompt or token that the model cannot read."""


class PromptTooLong(PromptError):
    """A prompt of more tokens than the model reads."""


class TemplateError(BadRequest):
    """A chat template that fails, takes too long, or is missing."""


class LimitExceeded(BadRequest):
    """A value that the model could serve, but that is more than one request may ask for here."""


class CheckpointError(ByhandError):
    """A model that cannot be opened."""


class CheckpointNotFound(CheckpointError):
    """No such folder, file or hub id."""


class UnknownArchitecture(CheckpointError):
    """A `model_type` that has no file in models/."""


class BadConfig(CheckpointError):
    """A config.json that cannot be read or contradicts itself."""


class BadWeights(CheckpointError):
    """Tensors that are truncated, missing, unexpected or of the wrong shape."""


class HubError(CheckpointError):
    """The hub refuses, is gated, or cannot be reached."""


class RecordError(ByhandError):
    """A file that is no record of a run, or is of another version."""


class RunFinished(ByhandError):
    """A step was asked of a run that has ended."""


class NotFinite(ByhandError):
    """The model's logits are NaN or infinite, so that no token can be chosen."""


class OutOfPages(ByhandError):
    """The KV cache has no room left."""


class TimeLimit(ByhandError):
    """A run had all the seconds it may have."""


class Busy(ByhandError):
    """No place for one more run now; `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: int = 1, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class NotServing(ByhandError):
    """The engine takes no runs: `state` is "starting", "draining", "closed" or "failed"."""

    def __init__(self, message: str, *, state: str, retry_after: int = 5, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.state = state
        self.retry_after = retry_after


class MissingExtra(ByhandError):
    """An optional dependency is not installed."""


def without_frames(error: Exception) -> Exception:
    """A copy of an error to keep: without the traceback, whose frames keep alive whatever was at work."""
    try:
        return copy(error).with_traceback(None)
    except Exception:  # noqa: BLE001 (a class of the user's that cannot be made again from its arguments)
        return RuntimeError(f"{type(error).__name__}: {error}")
