"""byhand's own routes: tokens, templates, the reading of a prompt, health, numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from byhand.engine.events import Failed, Read
from byhand.engine.limits import Limits
from byhand.errors import LimitExceeded
from byhand.jsonable import position_to_json, token_to_json
from byhand.sampling.params import SamplingParams
from byhand.server.answers import HealthAnswer, ModelCard, ModelList, PromptAnswer, TextAnswer
from byhand.server.chat import render
from byhand.server.flow import Flow
from byhand.server.metrics import CONTENT_TYPE
from byhand.server.service import Service, beside, service_of
from byhand.server.shapes import DetokenizeRequest, ReadRequest, TemplateRequest, TokenizeRequest, TokenizeText
from byhand.server.sse import Pieces, compact

if TYPE_CHECKING:
    from byhand.llm import LLM

TOP = 5
LISTED_AT_ONCE = 256


def _listed(llm: LLM, ids: list[int]) -> str:
    """The tokens of ids as JSON, a few at a time: who else wants to run may do so between two of them."""
    parts = (ids[start : start + LISTED_AT_ONCE] for start in range(0, len(ids), LISTED_AT_ONCE))
    lists = (compact([token_to_json(llm.tokenizer.token(token)) for token in part])[1:-1] for part in parts)
    return f'{{"tokens":[{",".join(lists)}]}}'


def _check_listed(limits: Limits, tokens: int, param: str, at_least: str = "") -> None:
    if tokens > limits.listed_tokens:
        message = (
            f"`{param}` has {tokens} tokens{at_least}; this server's limit is {limits.listed_tokens} (listed_tokens)"
        )
        raise LimitExceeded(message, param=param)


async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The tokens of a text, the start-of-sequence token included, or of a chat's prompt."""
    service = service_of(request)
    llm = service.model(body.model)

    def of_text(text: str) -> str:
        _check_listed(service.limits, llm.tokenizer.fewest_tokens(text), "text", " or more")
        ids = llm.tokenizer.encode(text)
        _check_listed(service.limits, len(ids), "text")
        return _listed(llm, ids)

    if isinstance(body, TokenizeText):
        text = body.text
        tokens = await beside(len(text), lambda: of_text(text))
    else:
        chat = body
        tokens = await asyncio.to_thread(lambda: _listed(llm, render(llm, chat).ids))
    return Response(tokens, media_type="application/json")


async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of ids, special tokens left out."""
    service = service_of(request)
    llm = service.model(body.model)
    _check_listed(service.limits, len(body.ids), "ids")
    text = await beside(len(body.ids), lambda: llm.detokenize(body.ids))
    return JSONResponse(TextAnswer(text=text).plain())


async def apply_template(body: TemplateRequest, request: Request) -> Response:
    """The prompt that the checkpoint's chat template makes, and its ids."""
    prompt = await asyncio.to_thread(render, service_of(request).model(body.model), body)
    return JSONResponse(PromptAnswer(text=prompt.text, ids=prompt.ids).plain())


async def _lines(flow: Flow) -> AsyncIterator[dict[str, Any]]:
    async for _, event in flow:
        match event:
            case Read(positions=positions):
                for position in positions:
                    yield position_to_json(position)
            case Failed(error=error):
                raise error


async def read(body: ReadRequest, request: Request) -> Response:
    """What the model predicts after every position of a prompt: one JSON line each, as they are computed."""
    service = service_of(request)
    llm = service.model(body.model)
    top = TOP if body.top is None else body.top
    service.limits.check("logprobs", top, param="top")
    ids = await beside(len(body.prompt), lambda: llm.encode(body.prompt))
    flow = Flow(service.worker, queued=16)
    flow.submit(ids, SamplingParams(max_tokens=0), read_prompt=top)
    return Pieces(_lines(flow), flow)


async def health(request: Request) -> Response:
    """200 when requests are taken, else 503."""
    service = service_of(request)
    state = service.worker.state
    answer = HealthAnswer(status=state, model=service.name).plain()
    headers = None if state == "ready" else {"Retry-After": "1"}
    return JSONResponse(answer, 200 if state == "ready" else 503, headers)


async def metrics(request: Request) -> Response:
    """The numbers of the engine and of requests, for Prometheus."""
    text = await asyncio.to_thread(service_of(request).metrics.text)
    return Response(text, headers={"content-type": CONTENT_TYPE})


def _card(service: Service) -> ModelCard:
    llm = service.worker.llm
    return ModelCard(
        id=service.name,
        object="model",
        created=service.created,
        owned_by="byhand",
        context_length=llm.context_length,
        vocab_size=llm.vocab_size,
    )


async def models(request: Request) -> Response:
    """The model that is served."""
    return JSONResponse(ModelList(object="list", data=[_card(service_of(request))]).plain())


async def model(name: str, request: Request) -> Response:
    """One model."""
    service = service_of(request)
    service.model(name)
    return JSONResponse(_card(service).plain())
