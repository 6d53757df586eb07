"""The application: routes, what becomes of errors, and the guard before everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from byhand.errors import ByhandError
from byhand.server import answers, chat, completions, own, page, page_source
from byhand.server.bodies import StrictRoute
from byhand.server.document import BODY, COMMON, NAMED, RUNS, SERVING, document
from byhand.server.flow import ClientGone
from byhand.server.guard import Guard, Rules
from byhand.server.live import Live
from byhand.server.log import RequestLog
from byhand.server.problems import problem_of
from byhand.server.service import Service

Responses = dict[int | str, dict[str, Any]]

_TEXT: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
_LINES: Responses = {200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}

_EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "a chunk or an error object as JSON, or [DONE]"}},
    "required": ["data"],
}


def _streamed(model: type[answers.Answer]) -> Responses:
    """An answer in one piece, or its chunks as server-sent events."""
    return {200: {"model": model, "content": {"text/event-stream": {"schema": _EVENT}}}}


async def _answer_error(_: Request, error: Exception) -> Response:
    return problem_of(error).response


async def _nobody_there(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # it reaches nobody: the connection is gone


def _add_routes(app: FastAPI) -> None:
    def add(method: str, path: str, endpoint: Callable[..., Any], responses: Responses, **options: Any) -> None:
        together = {**COMMON, **responses}
        app.router.add_api_route(path, endpoint, methods=[method], responses=together, response_model=None, **options)

    asking = {**BODY, **NAMED, **SERVING}
    running = {**asking, **RUNS}
    add("POST", "/v1/completions", completions.completions, {**running, **_streamed(answers.CompletionAnswer)})
    add("POST", "/v1/chat/completions", chat.chat_completions, {**running, **_streamed(answers.ChatAnswer)})
    add("GET", "/v1/models", own.models, {**SERVING, 200: {"model": answers.ModelList}})
    add("GET", "/v1/models/{name:path}", own.model, {**SERVING, **NAMED, 200: {"model": answers.ModelCard}})
    add("POST", "/tokenize", own.tokenize, {**asking, 200: {"model": answers.TokensAnswer}})
    add("POST", "/detokenize", own.detokenize, {**asking, 200: {"model": answers.TextAnswer}})
    add("POST", "/apply-template", own.apply_template, {**asking, 200: {"model": answers.PromptAnswer}})
    add("POST", "/read", own.read, {**running, **_LINES}, response_class=Response)
    add("GET", "/health", own.health, {200: {"model": answers.HealthAnswer}, 503: {"model": answers.HealthAnswer}})
    add("GET", "/metrics", own.metrics, _TEXT, response_class=Response)
    add("GET", "/", page.index, {200: {"content": {"text/html": {}}}}, response_class=Response)
    add("GET", "/web/{name}", page.web, {}, include_in_schema=False)
    add("GET", "/source/{path:path}", page_source.source, {}, include_in_schema=False)


class SamePath:
    """ASGI middleware: a path means the same with a slash at its end. No redirect, on which clients lose their body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through by its plain path."""
        path = scope.get("path", "")
        if len(path) > 1 and path.endswith("/"):
            scope = {**scope, "path": path[:-1]}
        await self.app(scope, receive, send)


def create_app(service: Service, live: Live, rules: Rules) -> FastAPI:
    """The whole application around one worker."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.router.route_class = StrictRoute
    app.state.service = service
    app.state.live = live
    _add_routes(app)

    async def openapi() -> Response:
        return JSONResponse(document(app, service))

    app.router.add_api_route("/openapi.json", openapi, methods=["GET"], include_in_schema=False)
    app.router.routes.append(WebSocketRoute("/live", live.endpoint))
    for kind in (HTTPException, ByhandError, Exception):
        app.add_exception_handler(kind, _answer_error)
    for gone in (ClientGone, ClientDisconnect):
        app.add_exception_handler(gone, _nobody_there)
    # The last added is the first asked.
    app.add_middleware(Guard, rules=rules)
    app.add_middleware(RequestLog, metrics=service.metrics)
    app.add_middleware(SamePath)
    return app
