"""What may be sent: pydantic shapes, strict in type and closed to unknown names. The ranges are SamplingParams' own.

`marked("n")` leaves a mark in the JSON schema; document.py puts the limit of the model or the server in its place.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from byhand.sampling.params import fields_table

MARK = "x-byhand-limit"


def marked(limit: str) -> dict[str, Any]:
    """The mark of a limit that only the served model or the server's settings know."""
    return {MARK: limit}


def _whole(value: object) -> object:
    """1.0 is an integer in JSON as 1 is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _boolean(value: object) -> object:
    """Python takes 0 for False; JSON does not."""
    if value is not None and not isinstance(value, bool):
        raise ValueError("it should be true or false")
    return value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("it should be a number")
    return value


def _wholes(value: object) -> object:
    """The same for a list, in which floats are rare."""
    if isinstance(value, list) and float in {*map(type, value)}:
        return [_whole(item) for item in value]
    return value


Never = Annotated[Literal[False] | None, BeforeValidator(_boolean)]


def option(name: str, default: Any = None, note: str = "") -> Any:
    """A field of SamplingParams: its range and its help."""
    info = next(each for each in fields_table() if each.name == name)
    limits: dict[str, Any] = {}
    if info.kind in ("number", "integer"):
        limits["gt" if info.exclusive_minimum else "ge"] = info.minimum
        limits["le"] = info.maximum
    if info.kind == "integer":
        limits = {bound: int(value) for bound, value in limits.items()}
    return Field(default, description=info.help + note, **limits)


class Strict(BaseModel):
    """No unknown names, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


Whole = Annotated[int, BeforeValidator(_whole)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1, json_schema_extra=marked("token_id"))]
Ids = Annotated[list[TokenId], Field(fail_fast=True), BeforeValidator(_wholes)]
SomeIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1), BeforeValidator(_wholes)]
PromptIds = Annotated[SomeIds, Field(json_schema_extra=marked("prompt_tokens"))]
StopString = Annotated[str, Field(min_length=1, json_schema_extra=marked("stop_length"))]
StopStrings = Annotated[list[StopString], Field(fail_fast=True, json_schema_extra=marked("stops"))]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Bias], Field(json_schema_extra=marked("bias"))]
Prompt = Annotated[
    str
    | PromptIds
    | Annotated[list[str], Field(fail_fast=True, min_length=1, json_schema_extra=marked("prompts"))]
    | Annotated[list[PromptIds], Field(fail_fast=True, min_length=1, json_schema_extra=marked("prompts"))],
    Field(description="text, token ids (taken as they are), or a list of either"),
]
OnePrompt = Annotated[str | PromptIds, Field(description="text, or token ids, taken as they are")]
ModelName = Annotated[str | None, Field(json_schema_extra=marked("model"), description="may be left out")]


# What the text must look like.


class PlainText(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObject(Strict):
    """Some JSON object, compact."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON schema with a name. It is always followed strictly."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class JsonSchema(Strict):
    """JSON that fits a schema, compact."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class Regex(Strict):
    """byhand's own: text that a regular expression (Rust's syntax) matches as a whole."""

    type: Literal["regex"]
    regex: str = Field(min_length=1)


class OneOf(Strict):
    """byhand's own: one of these texts."""

    type: Literal["choice"]
    choices: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema | Regex | OneOf, Field(discriminator="type")]


class StreamOptions(Strict):
    """What a stream says beside the text."""

    include_usage: bool | None = Field(None, description="a last chunk with the usage and no choices")
    include_obfuscation: Never = Field(None, description="nothing is padded here")


NOTHING = "changes nothing"


class Ignored(Strict):
    """Fields of OpenAI's that mean nothing here: what is said in them is named in a header of the answer."""

    metadata: dict[str, Any] | None = Field(None, description=NOTHING)
    store: Never = Field(None, description=f"{NOTHING}: nothing is stored; true is refused")
    service_tier: str | None = Field(None, description=NOTHING)
    prompt_cache_key: str | None = Field(None, description=f"{NOTHING}: every beginning is found again by itself")
    safety_identifier: str | None = Field(None, description=NOTHING)
    verbosity: str | None = Field(None, description=NOTHING)
    user: str | None = Field(None, description=NOTHING)


class Sampling(Ignored):
    """What completions and chat have in common."""

    model: ModelName = None
    temperature: float | None = option("temperature", note="; default: the checkpoint's where it samples, else 1")
    top_p: float | None = option("top_p")
    n: Annotated[Whole, Field(ge=1, json_schema_extra=marked("n"))] | None = None
    seed: Whole | None = option("seed")
    stop: StopString | StopStrings | None = Field(None, description="strings that end the run, and are cut off")
    presence_penalty: float | None = option("presence_penalty")
    frequency_penalty: float | None = option("frequency_penalty")
    logit_bias: Biases | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # byhand's own, in SamplingParams' names.
    top_k: Whole | None = option("top_k")
    min_p: float | None = option("min_p")
    typical_p: float | None = option("typical_p")
    repetition_penalty: float | None = option("repetition_penalty")
    no_repeat_ngram_size: Whole | None = option("no_repeat_ngram_size")
    allowed_ids: SomeIds | None = option("allowed_ids")
    banned_ids: Ids | None = option("banned_ids")
    stop_ids: Ids | None = option("stop_ids")
    ignore_eos: bool | None = option("ignore_eos")
    min_tokens: Whole | None = option("min_tokens")
    return_token_ids: bool | None = Field(None, description="add token_ids and prompt_token_ids to every choice")
    prompt_logprobs: Annotated[Whole, Field(ge=0, json_schema_extra=marked("logprobs"))] | None = Field(
        None, description="add to every choice what the model thought of each token of the prompt, and its best k"
    )


MaxTokens = Annotated[Whole, Field(ge=0, le=2**31 - 1)]


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: Prompt
    max_tokens: MaxTokens | None = Field(None, description="default 16; 0 makes none, and only reads the prompt")
    echo: bool | None = Field(None, description="begin the text with the prompt")
    logprobs: Annotated[Whole, Field(ge=0, json_schema_extra=marked("logprobs"))] | None = None
    best_of: Annotated[Literal[1] | None, BeforeValidator(_number)] = Field(
        None, description="more than 1 is not supported"
    )
    suffix: None = Field(None, description="not supported")


# Messages.


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None


Content = str | Annotated[list[TextPart], Field(fail_fast=True, min_length=1)]


class FunctionCall(Strict):
    """The function that an assistant called."""

    name: str
    arguments: str


class ToolCall(Strict):
    """A call as OpenAI writes it."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class PlainMessage(Strict):
    """What a system, a developer (read as system) or a user says."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = None


class AssistantMessage(Strict):
    """What the assistant said."""

    role: Literal["assistant"]
    content: Content | None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=0)] | None = None
    function_call: None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class CallingMessage(AssistantMessage):
    """What the assistant said when it called tools."""

    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)]


class ToolMessage(Strict):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


def _kind_of(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    if role == "assistant":
        return "calling message" if message.get("tool_calls") else "assistant message"
    return "tool message" if role == "tool" else "plain message"


MessageItem = Annotated[
    Annotated[PlainMessage, Tag("plain message")]
    | Annotated[AssistantMessage, Tag("assistant message")]
    | Annotated[CallingMessage, Tag("calling message")]
    | Annotated[ToolMessage, Tag("tool message")],
    Discriminator(_kind_of),
]
MessageList = Annotated[list[MessageItem], Field(fail_fast=True, min_length=1)]


class Function(Strict):
    """A function as a tool describes it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool that the template may tell the model of."""

    type: Literal["function"]
    function: Function


RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final", "documents", "self", "with_tools")


def _free(switches: dict[str, Any]) -> dict[str, Any]:
    for name in switches:
        if name in RESERVED:
            raise ValueError(f"`{name}` is a word of the template's own")
    return switches


Switches = Annotated[
    dict[str, Any], AfterValidator(_free), Field(json_schema_extra={"propertyNames": {"not": {"enum": list(RESERVED)}}})
]


class Templated(Strict):
    """What goes through the checkpoint's chat template."""

    messages: MessageList
    tools: list[Tool] | None = Field(None, description="told to the model as far as the template goes")
    chat_template_kwargs: Switches | None = Field(None, description="byhand's own: switches of the template")
    reasoning_effort: str | None = Field(None, description="told to the template; what it makes of it is its own")
    add_generation_prompt: bool | None = Field(None, description="byhand's own: default true")
    continue_final_message: bool | None = Field(
        None, description="byhand's own: leave the last message open, and go on with it"
    )


class ChatRequest(Templated, Sampling):
    """POST /v1/chat/completions."""

    max_tokens: MaxTokens | None = Field(None, description="default: to the end of the context")
    max_completion_tokens: MaxTokens | None = Field(None, description="the same under its newer name")
    logprobs: bool | None = Field(None, description="add the log-probability of every token, with its bytes")
    top_logprobs: Annotated[Whole, Field(ge=0, json_schema_extra=marked("logprobs"))] | None = None
    tool_choice: Literal["none", "auto"] | None = Field(None, description="none leaves the tools out")
    parallel_tool_calls: bool | None = Field(None, description="false: the answer ends with its first call")
    modalities: Annotated[list[Literal["text"]], Field(min_length=1)] | None = None


# Routes of our own.


class TokenizeText(Strict):
    """A text to be cut into tokens, the start-of-sequence token included."""

    text: str
    model: ModelName = None


class TokenizeMessages(Templated):
    """Messages, made into a prompt and cut into tokens."""

    model: ModelName = None


TokenizeRequest = Annotated[
    Annotated[TokenizeText, Tag("a text")] | Annotated[TokenizeMessages, Tag("a chat")],
    Discriminator(lambda value: "a chat" if isinstance(value, dict) and "messages" in value else "a text"),
]


class DetokenizeRequest(Strict):
    """POST /detokenize."""

    ids: Annotated[Ids, Field(json_schema_extra=marked("listed_tokens"))]
    model: ModelName = None


class TemplateRequest(Templated):
    """POST /apply-template."""

    model: ModelName = None


class ReadRequest(Strict):
    """POST /read."""

    prompt: OnePrompt
    top: Annotated[Whole, Field(ge=1, json_schema_extra=marked("logprobs"))] | None = Field(
        None, description="candidates at every position; default 5"
    )
    model: ModelName = None


def ignored(body: Any) -> list[str]:
    """The fields of a request in which something was said that changes nothing."""
    names = [name for name in Ignored.model_fields if getattr(body, name, None) is not None]
    contents = [message.content for message in getattr(body, "messages", ())]
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return names + ["cache_control"] * any(part.cache_control is not None for part in parts)
