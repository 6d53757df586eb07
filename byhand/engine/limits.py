"""What one request and one server may ask for at most: each limit with its default and its help. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from byhand.errors import BadRequest, LimitExceeded

if TYPE_CHECKING:
    from byhand.sampling.params import SamplingParams


def _limit(default: float | None, help: str, minimum: float = 1) -> Any:  # noqa: A002
    return field(default=default, metadata={"help": help, "minimum": minimum})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The server's limits; each field is a flag of `byhand serve`. None leaves it to the model and the cache."""

    running: int = _limit(32, "runs that are computed at once")
    waiting: int = _limit(256, "runs that wait for a place; one more is refused")
    prompt_tokens: int | None = _limit(None, "tokens of one prompt; none: the model's context")
    total_tokens: int | None = _limit(None, "tokens of one run, prompt and continuation; none: the model's context")
    pages: int | None = _limit(None, "cache pages (16 tokens each) that one run may hold; none: all of them")
    seconds: float = _limit(600.0, "seconds that one run may wait and be computed", 0.001)
    n: int = _limit(16, "choices of one prompt")
    stops: int = _limit(16, "stop strings of one request", 0)
    stop_length: int = _limit(256, "characters of one stop string")
    logprobs: int = _limit(20, "candidates that are reported for one token", 0)
    listed_tokens: int = _limit(2**17, "tokens that /tokenize lists, and that /detokenize takes")
    body_bytes: int = _limit(4 * 2**20, "bytes of one request body or one WebSocket frame", 1024)
    connections: int = _limit(64, "live connections at once")
    live_runs: int = _limit(32, "runs of one live connection")
    live_queue: int = _limit(256, "events kept for a live reader before its runs wait for it")
    resume_seconds: float = _limit(60.0, "seconds that the runs of a dropped live connection are kept", 0)

    def __post_init__(self) -> None:
        for info in fields(self):
            value, minimum = getattr(self, info.name), info.metadata["minimum"]
            if value is None and info.default is None:
                continue
            whole = not isinstance(info.default, float)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value >= minimum:
                kind = "a whole number" if whole else "a number"
                message = f"the limit `{info.name}` is {value!r}; it must be {kind} of at least {minimum}"
                raise BadRequest(message, param=info.name)

    def check(self, name: str, value: int, *, param: str | None = None) -> None:
        """Refuse a value above the limit of this name; `param` is the request's own word for it."""
        limit = getattr(self, name)
        if limit is not None and value > limit:
            param = param or name
            raise LimitExceeded(f"`{param}` is {value}; this server's limit is {limit} ({name})", param=param)

    def check_params(self, params: SamplingParams) -> None:
        """Refuse more choices, stop strings or candidates than one request may have."""
        self.check("n", params.n)
        self.check("logprobs", params.logprobs or 0)
        self.check("stops", len(params.stop), param="stop")
        self.check("stop_length", max(map(len, params.stop), default=0), param="stop")
