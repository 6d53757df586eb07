"""One request on its way to its answer: in chunks, as the tokens come, or whole, which is the sum of the chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from time import time
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from byhand.server.answers import Answer, ChunkChoice, CompletionChoice, Extras
from byhand.server.flow import Flow, while_there
from byhand.server.generation import Job, Piece, made_id, open_flow, pieces
from byhand.server.service import Service
from byhand.server.shapes import Sampling
from byhand.server.sse import EventStream

Part = TypeVar("Part", CompletionChoice, ChunkChoice)


class Answering(ABC, Generic[Part]):
    """A job, and the head that all its answers share."""

    def __init__(self, service: Service, asked: Sampling, job: Job, prefix: str) -> None:
        self._service = service
        self._asked = asked
        self.job = job
        self.head: dict[str, Any] = {"id": made_id(prefix), "created": int(time()), "model": service.name}

    @abstractmethod
    def part(self, piece: Piece) -> Part | None:
        """What a piece adds to its choice, if anything."""

    @abstractmethod
    def chunk(self, parts: list[Part]) -> Answer:
        """A chunk of a stream."""

    @abstractmethod
    def total(self, parts: Sequence[list[Part]]) -> Answer:
        """The whole answer: the parts of each choice."""

    async def chunks(self, flow: Flow) -> AsyncIterator[dict[str, Any]]:
        """The answer in chunks, one a token, and at the end the usage if it was asked for."""
        options = self._asked.stream_options
        with_usage = bool(options and options.include_usage)
        async for piece in pieces(self._service, self.job, flow):
            part = self.part(piece)
            if part is not None:
                yield self.chunk([part]).plain() | ({"usage": None} if with_usage else {})
        if with_usage:
            yield {**self.chunk([]).plain(), "usage": self.job.usage.plain()}

    async def whole(self, flow: Flow) -> dict[str, Any]:
        """The answer in one piece."""
        parts: dict[int, list[Part]] = {}
        async for piece in pieces(self._service, self.job, flow):
            part = self.part(piece)
            if part is not None:
                parts.setdefault(part.index, []).append(part)
        return self.total([parts[index] for index in sorted(parts)]).plain()

    async def respond(self, request: Request) -> Response:
        """Ask the worker, and send what it tells; a client that hangs up ends it."""
        flow = open_flow(self._service, self.job)
        if self._asked.stream:
            return EventStream(self.chunks(flow), flow)
        with flow:
            return JSONResponse(await while_there(request.receive, self.whole(flow)))


def add_extras(whole: Extras, parts: Sequence[Extras]) -> None:
    """Put together what the parts of a choice say in byhand's own fields."""
    for part in parts:
        for name in part.model_fields_set & set(Extras.model_fields):
            value = getattr(part, name)
            known = getattr(whole, name) if name in whole.model_fields_set else None
            setattr(whole, name, known + value if isinstance(known, list) else value)
