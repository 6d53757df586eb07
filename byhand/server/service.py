"""What every route works with: the worker, the served model's name, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request

from byhand.engine.limits import Limits
from byhand.engine.worker import Worker
from byhand.server.metrics import Metrics
from byhand.server.problems import ApiError

if TYPE_CHECKING:
    from byhand.llm import LLM

T = TypeVar("T")
LONG_TEXT = 2000  # characters beyond which tokenizing is no work for the event loop


@dataclass(slots=True)
class Service:
    """One served model. `name` is what /v1/models calls it; a path on this machine is nobody's business."""

    worker: Worker
    name: str
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time()))

    @property
    def limits(self) -> Limits:
        """What one request may ask for."""
        return self.worker.limits

    def model(self, name: str | None) -> LLM:
        """The model of this name; NotServing until it is there."""
        llm = self.worker.llm
        if name is not None and name != self.name:
            message = f"the model {name[:60]!r} is not served here; `{self.name}` is"
            raise ApiError(404, message, code="model_not_found", param="model")
        return llm


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service


async def beside(size: int, work: Callable[[], T]) -> T:
    """Do some work on text: at once where it is short, in a thread where it would keep others waiting."""
    return work() if size <= LONG_TEXT else await asyncio.to_thread(work)
