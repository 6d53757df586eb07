"""byhand: LLM inference by hand. Every step of autoregressive decoding in the open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byhand.llm import LLM as LLM
    from byhand.record import Record as Record
    from byhand.run import Run as Run

from byhand import frames as _frames  # noqa: F401 - these four register how values show themselves
from byhand import html as _html  # noqa: F401
from byhand import jsonable as _jsonable  # noqa: F401
from byhand import reprs as _reprs  # noqa: F401
from byhand.errors import (
    BadConfig,
    BadRequest,
    BadWeights,
    ByhandError,
    CheckpointError,
    CheckpointNotFound,
    HubError,
    MissingExtra,
    NotFinite,
    OutOfPages,
    PromptError,
    RecordError,
    RunFinished,
    TemplateError,
    UnknownArchitecture,
)
from byhand.sampling.params import SamplingParams
from byhand.types import (
    Candidate,
    ChainStage,
    Completion,
    Draw,
    FinishReason,
    Position,
    Reading,
    Score,
    Step,
    Token,
    Usage,
)
from byhand.version import __version__ as __version__

# Opened on first use, so that importing byhand loads no torch.
_LAZY = {"LLM": "byhand.llm", "Run": "byhand.run", "Record": "byhand.record"}

__all__ = [
    "LLM",
    "BadConfig",
    "BadRequest",
    "BadWeights",
    "ByhandError",
    "Candidate",
    "ChainStage",
    "CheckpointError",
    "CheckpointNotFound",
    "Completion",
    "Draw",
    "FinishReason",
    "HubError",
    "MissingExtra",
    "NotFinite",
    "OutOfPages",
    "Position",
    "PromptError",
    "Reading",
    "Record",
    "RecordError",
    "Run",
    "RunFinished",
    "SamplingParams",
    "Score",
    "Step",
    "TemplateError",
    "Token",
    "UnknownArchitecture",
    "Usage",
]


if not TYPE_CHECKING:  # to a type checker, a name that is not here must be an error

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module 'byhand' has no attribute {name!r}")
        from importlib import import_module

        from byhand.collector import without_collector

        with without_collector():  # hundreds of thousands of objects are made, and stay: 0.1 s
            return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
