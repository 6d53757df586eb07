"""What is answered: OpenAI's shapes, exactly, and byhand's own. What was not asked for is left out, not null."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """A shape of an answer."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """As JSON's own types; what was not set is left out."""
        return self.model_dump(exclude_unset=True)


class ErrorBody(Answer):
    """What went wrong: a sentence, its kind, the field's name, and a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """OpenAI's error object."""

    error: ErrorBody


class CachedTokens(Answer):
    """Tokens of the prompt that were known already."""

    cached_tokens: int


class UsageAnswer(Answer):
    """Tokens of all prompts and all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class LegacyLogprobs(Answer):
    """One entry a token, in four lists. The first token of all has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class PromptLogprob(Answer):
    """byhand's own (and vLLM's): one candidate after a position of the prompt."""

    logprob: float
    rank: int
    decoded_token: str


class Extras(Answer):
    """byhand's own fields of a choice, there only when they were asked for."""

    token_ids: list[int] = []
    prompt_token_ids: list[int] = []
    stop_reason: int | str | None = None
    prompt_logprobs: list[dict[int, PromptLogprob] | None] = []


class CompletionChoice(Extras):
    """One text."""

    text: str
    index: int
    logprobs: LegacyLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionAnswer(Answer):
    """A completion, or a chunk of one: they have the same shape."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageAnswer | None = None


class TokenLogprob(Answer):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogprob(TokenLogprob):
    """A chosen token and the best candidates beside it."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Answer):
    """One entry a token."""

    content: list[ChosenLogprob] | None
    refusal: None = None


class CalledFunction(Answer):
    """The function that is called, and its arguments as JSON in a text."""

    name: str
    arguments: str


class CalledTool(Answer):
    """A call of a tool; in a chunk with its place among the message's."""

    index: int = 0
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Answer):
    """What the model said, and the tools that it called."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[CalledTool] = []


class ChatChoice(Extras):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatAnswer(Answer):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageAnswer


class Delta(Answer):
    """What a chunk adds to a message."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    tool_calls: list[CalledTool] = []


class ChunkChoice(Extras):
    """One answer's part of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatChunk(Answer):
    """A piece of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageAnswer | None = None


class ModelCard(Answer):
    """One model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int
    vocab_size: int


class ModelList(Answer):
    """The models that are served: one."""

    object: Literal["list"]
    data: list[ModelCard]


class TokenAnswer(Answer):
    """One token."""

    id: int
    text: str
    bytes: list[int]
    special: bool


class TokensAnswer(Answer):
    """The tokens of a text."""

    tokens: list[TokenAnswer]


class TextAnswer(Answer):
    """The text of ids."""

    text: str


class PromptAnswer(Answer):
    """A rendered prompt and its ids."""

    text: str
    ids: list[int]


class HealthAnswer(Answer):
    """starting, ready, draining, closed or failed."""

    status: str
    model: str | None
