"""Every refusal as OpenAI's error object, with its status. What went wrong inside stays inside: it is logged.

400 bad value, too long · 401 key · 403 foreign Host or Origin · 404 model or path · 405 method · 408 body too slow
413 body too large · 415 no JSON · 429 full, with Retry-After · 500 inside · 503 starting or draining, with Retry-After
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from byhand import errors

log = logging.getLogger("byhand.server")

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class ApiError(HTTPException):
    """An answer that is an error: `code` is for programs, `param` names the field."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = TYPES.get(self.status_code, "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body, self.status_code, self.headers)


def _code_of(error: errors.BadRequest) -> str:
    match error:
        case errors.PromptTooLong():
            return "context_length_exceeded"
        case errors.LimitExceeded():
            # A prompt too long for the server is to a client what one too long for the model is.
            return "context_length_exceeded" if error.param == "prompt" else "limit_exceeded"
        case errors.TemplateError():
            return "template_error"
    return "invalid_value"


def problem_of(error: BaseException) -> ApiError:
    """The answer to an error, whatever raised it."""
    match error:
        case ApiError():
            return error
        case errors.BadRequest():
            return ApiError(400, str(error), code=_code_of(error), param=error.param)
        case errors.Busy():
            headers = {"Retry-After": str(error.retry_after)}
            return ApiError(429, str(error), code="server_full", headers=headers)
        case errors.NotServing():
            headers = {"Retry-After": str(error.retry_after)}
            return ApiError(503, str(error), code=error.state, headers=headers)
        case errors.TimeLimit():
            return ApiError(503, str(error), code="time_limit", headers={"Retry-After": "1"})
        case errors.OutOfPages():
            return ApiError(503, str(error), code="cache_full", headers={"Retry-After": "1"})
        case errors.NotFinite():
            return ApiError(500, str(error), code="logits_not_finite")
        case HTTPException():
            return _of_status(error)
    log.error("an inner error", exc_info=error)
    return ApiError(500, "something went wrong inside the server; its log says what", code="internal_error")


def _of_status(error: HTTPException) -> ApiError:
    """Starlette's own: no such path, another method."""
    sentences = {404: "there is no such path here", 405: "this path takes another method"}
    codes = {404: "not_found", 405: "method_not_allowed"}
    sentence = sentences.get(error.status_code, "the request cannot be read")
    code = codes.get(error.status_code, "invalid_request")
    return ApiError(error.status_code, sentence, code=code, headers=error.headers)
