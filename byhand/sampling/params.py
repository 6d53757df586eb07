"""`SamplingParams`: every option of a run, checked once. Ranges and help live on the fields. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from byhand.errors import BadRequest
from byhand.sampling.fields import CHECKS, INTEGER_LIMIT, FieldInfo, Kind, plain, shown
from byhand.sampling.options import AllOptions, StageFunction

# The fields of which at most one constrains the whole continuation.
CONSTRAINTS = ("json_schema", "json_object", "regex", "choices")
SEED_LIMITS = (-(2**63), 2**64 - 1)


def _option(kind: Kind, default: object, help: str, **info: Any) -> Any:  # noqa: A002
    metadata = {"kind": kind, "help": help, **info}
    if kind == "biases":
        return field(default_factory=dict, hash=False, metadata=metadata)
    return field(default=default, metadata=metadata)


def stage_name(function: object) -> str:
    """The name under which a user's own stage stands in the chain and in records."""
    return str(getattr(function, "__name__", type(function).__name__))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when a run ends. Greedy unless `temperature` is above 0; every value is checked."""

    temperature: float = _option(
        "number",
        0.0,
        "divide the logits by this before the draw; 0 takes the best token (greedy)",
        off=1.0,
        minimum=0.0,
        maximum=100.0,
        slider=(0.0, 2.0, 0.05),
    )
    top_k: int = _option(
        "integer",
        0,
        "keep the k best tokens; 0 keeps all",
        off=0,
        minimum=0,
        maximum=INTEGER_LIMIT,
        slider=(0, 200, 1),
    )
    top_p: float = _option(
        "number",
        1.0,
        "keep the smallest set of best tokens whose probabilities reach p together (nucleus); 1 keeps all",
        off=1.0,
        minimum=0.0,
        maximum=1.0,
        exclusive_minimum=True,
        slider=(0.01, 1.0, 0.01),
    )
    min_p: float = _option(
        "number",
        0.0,
        "drop tokens less probable than this share of the best one's probability; 0 drops none",
        off=0.0,
        minimum=0.0,
        maximum=1.0,
        slider=(0.0, 1.0, 0.01),
    )
    typical_p: float = _option(
        "number",
        1.0,
        "keep the tokens whose surprise is nearest the entropy, up to this mass; 1 keeps all",
        off=1.0,
        minimum=0.0,
        maximum=1.0,
        exclusive_minimum=True,
        slider=(0.01, 1.0, 0.01),
    )
    repetition_penalty: float = _option(
        "number",
        1.0,
        "shrink the logits of tokens already in the prompt or the continuation; 1 changes nothing",
        off=1.0,
        minimum=0.01,
        maximum=100.0,
        slider=(0.5, 2.0, 0.01),
    )
    presence_penalty: float = _option(
        "number",
        0.0,
        "subtract this from the logits of tokens generated at least once",
        off=0.0,
        minimum=-2.0,
        maximum=2.0,
        slider=(-2.0, 2.0, 0.1),
    )
    frequency_penalty: float = _option(
        "number",
        0.0,
        "subtract this from a token's logit once for every time it was generated",
        off=0.0,
        minimum=-2.0,
        maximum=2.0,
        slider=(-2.0, 2.0, 0.1),
    )
    no_repeat_ngram_size: int = _option(
        "integer",
        0,
        "let no sequence of this many tokens occur twice, the prompt included; 0 lets all",
        off=0,
        minimum=0,
        maximum=INTEGER_LIMIT,
        slider=(0, 10, 1),
    )
    logit_bias: dict[int, float] = _option(  # noqa: RUF009 (the call is dataclasses.field)
        "biases", None, "numbers to add to the logits of single tokens, by id", off={}, minimum=-100.0, maximum=100.0
    )
    allowed_ids: tuple[int, ...] | None = _option(
        "ids",
        None,
        "the only token ids that may be generated (end-of-sequence ids must be listed too)",
        off=None,
        minimum=0,
        maximum=INTEGER_LIMIT,
        optional=True,
    )
    banned_ids: tuple[int, ...] = _option(
        "ids", (), "token ids that are never generated", off=(), minimum=0, maximum=INTEGER_LIMIT
    )
    json_schema: str | None = _option(
        "schema", None, "let only JSON that fits this schema be generated, without free white space", optional=True
    )
    json_object: bool = _option(
        "flag", False, "let only a JSON object be generated, with no free white space", off=False
    )
    regex: str | None = _option(
        "text", None, "let only text be generated that this regular expression matches as a whole", optional=True
    )
    choices: tuple[str, ...] = _option("texts", (), "let only one of these texts be generated", off=())
    seed: int | None = _option(
        "integer",
        None,
        "the number the dice follow from; none picks one at random, and the record keeps it",
        minimum=SEED_LIMITS[0],
        maximum=SEED_LIMITS[1],
        optional=True,
    )
    max_tokens: int | None = _option(
        "integer",
        None,
        "stop after this many generated tokens; none goes on to the context's end",
        minimum=0,
        maximum=INTEGER_LIMIT,
        optional=True,
        slider=(1, 1024, 1),
    )
    min_tokens: int = _option(
        "integer",
        0,
        "let no end-of-sequence token and no stop string end the run before this many tokens",
        off=0,
        minimum=0,
        maximum=INTEGER_LIMIT,
        slider=(0, 256, 1),
    )
    stop: tuple[str, ...] = _option(
        "texts", (), "strings that end the run, special tokens by their names; the text is cut before them", off=()
    )
    stop_ids: tuple[int, ...] = _option(
        "ids", (), "token ids that end the run, beside the checkpoint's own", off=(), minimum=0, maximum=INTEGER_LIMIT
    )
    ignore_eos: bool = _option("flag", False, "go on after the end-of-sequence token", off=False)
    logprobs: int | None = _option(
        "integer",
        None,
        "how many candidates to report for every token; a step holds at least 10",
        minimum=0,
        maximum=1000,
        optional=True,
    )
    n: int = _option("integer", 1, "how many continuations of each prompt", off=1, minimum=1, maximum=128)
    stages: tuple[StageFunction, ...] = _option(
        "functions", (), "functions of your own, (ids, logits) -> logits, run before the temperature", off=()
    )

    if TYPE_CHECKING:  # what may be written is more than what is kept: a list for a tuple, one text for several

        def __init__(self, **options: Unpack[AllOptions]) -> None: ...

    def __post_init__(self) -> None:
        for info in fields_table():
            object.__setattr__(self, info.name, _checked(info, getattr(self, info.name)))
        self._check_together()

    def _check_together(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            message = f"`min_tokens` is {self.min_tokens}; it must be at most max_tokens, which is {self.max_tokens}"
            raise BadRequest(message, param="min_tokens")
        constraints = [name for name in CONSTRAINTS if getattr(self, name)]
        if len(constraints) > 1:
            message = f"`{constraints[0]}` and `{constraints[1]}` are both given; a run follows one constraint"
            raise BadRequest(message, param=constraints[1])

    def __repr__(self) -> str:
        """Only what differs from the defaults."""
        values = ((info, getattr(self, info.name)) for info in fields_table())
        return f"SamplingParams({', '.join(f'{info.name}={v!r}' for info, v in values if v != info.default)})"

    @property
    def is_greedy(self) -> bool:
        """Whether the best token is taken and no dice are thrown."""
        return self.temperature == 0

    def replace(self, **changes: Unpack[AllOptions]) -> Self:
        """A copy with some fields changed, and these checked: the others were when they came."""
        _refuse_unknown(changes)
        given = cast(dict[str, Any], changes)
        checked = {info.name: _checked(info, given[info.name]) for info in fields_table() if info.name in given}
        copy = object.__new__(type(self))
        for info in fields_table():
            value = checked[info.name] if info.name in checked else getattr(self, info.name)
            object.__setattr__(copy, info.name, dict(value) if isinstance(value, dict) else value)
        copy._check_together()
        return copy

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse token ids that a model of this vocabulary does not have."""
        for name in ("logit_bias", "allowed_ids", "banned_ids"):
            highest = max(getattr(self, name) or (0,))
            if highest >= vocab_size:
                message = f"`{name}` names token {highest}; this model's ids end at {vocab_size - 1}"
                raise BadRequest(message, param=name)

    @classmethod
    def from_checkpoint(
        cls, generation_config: Mapping[str, object], *, vocab_size: int | None = None, **changes: Unpack[AllOptions]
    ) -> Self:
        """The options a checkpoint's generation_config.json asks for, as transformers reads them, then `changes`.

        Sampling is on only where `do_sample` is true. Only what is written counts: the top_k of 50 that
        transformers assumes where the file is silent is not applied. What is not understood is left out
        (`suggested` names it), for a hint refuses nothing; `changes` are checked like any params. Ids beyond
        `vocab_size` are banned by nature.
        """
        from byhand.sampling.suggested import fitted

        _refuse_unknown(changes)
        return cls(**fitted(suggested(generation_config, vocab_size)[0], changes))

    def to_json(self) -> dict[str, Any]:
        """Every field as JSON holds it. Functions cannot be written down: `stages` leaves their names."""
        values = {info.name: getattr(self, info.name) for info in fields_table()}
        values["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        values["stages"] = [stage_name(function) for function in self.stages]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, object], *, stages: Sequence[StageFunction] = ()) -> Self:
        """The params of a JSON object: null means not said, an unknown name is refused.

        Where the object names stages, the functions of those names must be given again, in order.
        """
        _refuse_unknown(values)
        said = {name: value for name, value in values.items() if value is not None}
        names = said.pop("stages", [])
        if names != [stage_name(function) for function in stages]:
            message = f"`stages` is {shown(names)}; functions cannot be read from JSON and must be given again"
            raise BadRequest(message, param="stages")
        return cls(**said, stages=tuple(stages))  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def fields_table() -> tuple[FieldInfo, ...]:
    """One FieldInfo for every field of SamplingParams, in order: what flags, checks, docs and sliders are made from."""
    return tuple(
        FieldInfo(name=each.name, default={} if each.metadata["kind"] == "biases" else each.default, **each.metadata)
        for each in fields(SamplingParams)
    )


def _checked(info: FieldInfo, value: object) -> object:
    """A field's value as it is kept; None is what the field is without it."""
    if value is None and info.optional:
        return None
    if value is None and info.kind in ("ids", "texts", "biases", "functions"):
        value = {} if info.kind == "biases" else ()
    return CHECKS[info.kind](info, value)


def suggested(
    config: Mapping[str, Any], vocab_size: int | None = None, context_length: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The values of a generation_config.json by these fields' names, and what it says that is left out."""
    from byhand.sampling.suggested import suggested as read

    return read(config, fields_table(), vocab_size, context_length)


def _naming_the_unknown(made: Callable[..., None]) -> Callable[..., None]:
    @wraps(made)
    def init(self: SamplingParams, *args: Any, **options: Any) -> None:
        _refuse_unknown(options)
        made(self, *args, **options)

    return init


SamplingParams.__init__ = _naming_the_unknown(SamplingParams.__init__)  # type: ignore[method-assign]

# What transformers and vLLM call some of them.
_ELSEWHERE = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "min_new_tokens": "min_tokens",
    "do_sample": "temperature",
    "num_return_sequences": "n",
    "stop_strings": "stop",
    "stop_token_ids": "stop_ids",
    "eos_token_id": "stop_ids",
    "bad_words_ids": "banned_ids",
    "allowed_token_ids": "allowed_ids",
    "temp": "temperature",
}


def fields_as_markdown() -> str:
    """The table of fields as the docs show it."""
    rows = ["| field | default | range | what it does |", "|---|---|---|---|"]
    for info in fields_table():
        limits = info.limits if info.kind in ("number", "integer", "biases") else ""
        rows.append(f"| `{info.name}` | `{plain(info.default)}` | {limits} | {info.help} |")
    return "\n".join(rows) + "\n"


def _refuse_unknown(names: Iterable[str]) -> None:
    known = [info.name for info in fields_table()]
    for name in sorted(str(name) for name in names if name not in known):
        meant = _ELSEWHERE.get(name) or next(iter(get_close_matches(name, known, 1)), None)
        hint = f"did you mean `{meant}`?" if meant else f"known: {', '.join(known)}"
        raise BadRequest(f"unknown sampling parameter `{name}`", param=name, hint=hint)
