"""generation_config.json as SamplingParams' values. A hint: what is not understood is named, and refuses nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from byhand.errors import BadRequest
from byhand.sampling.fields import CHECKS, FieldInfo, shown

# Its name → ours, and the field is off up to the first number, and from the second on. The sampler's count only where
# `do_sample` is true.
SAMPLER = {
    "temperature": ("temperature", -inf, inf),
    "top_k": ("top_k", 0, inf),
    "top_p": ("top_p", -inf, 1),
    "min_p": ("min_p", 0, inf),
    "typical_p": ("typical_p", -inf, 1),
}
NUMBERS = SAMPLER | {
    "repetition_penalty": ("repetition_penalty", -inf, inf),
    "no_repeat_ngram_size": ("no_repeat_ngram_size", 0, inf),
    "min_new_tokens": ("min_tokens", 0, inf),
    "max_new_tokens": ("max_tokens", 0, inf),
}
LISTS = {"suppress_tokens": "banned_ids", "bad_words_ids": "banned_ids", "stop_strings": "stop"}
# Read elsewhere, or without a say in which token comes next.
ELSEWHERE = {
    "do_sample", "pad_token_id", "decoder_start_token_id", "transformers_version", "_from_model_config", "use_cache",
    "low_memory", "prefill_chunk_size", "compile_config", "disable_compile", "renormalize_logits",
    "early_stopping", "length_penalty", "num_beam_groups",  # of beams, which `num_beams` asks for
}  # fmt: skip
PREFIXES = (
    "cache_", "max_cache_", "output_", "return_", "assistant_", "num_assistant_", "prompt_lookup_", "max_matching_",
)  # fmt: skip
# What transformers assumes where nobody says a length.
MAX_LENGTH = 20
NAME_SHOWN = 40  # characters of a field's name


def suggested(
    config: Mapping[str, Any], table: Iterable[FieldInfo], vocab_size: int | None, context_length: int | None
) -> tuple[dict[str, Any], list[str]]:
    """The values of a generation_config.json by SamplingParams' names, and what it says that is left out.

    `table`: SamplingParams' fields, which know their ranges.
    """
    infos = {info.name: info for info in table}
    samples = config.get("do_sample") in (True, 1)
    found: dict[str, Any] = {"temperature": 1.0} if samples else {}
    left_out: list[str] = []
    for name, value in config.items():
        if name in SAMPLER and not samples:
            continue
        if name in NUMBERS:
            understood = _read_number(found, infos, name, value)
        elif name in LISTS:
            value = _read_list(found, name, value, config, vocab_size)
            understood = not value
        else:
            understood = _says_nothing(name, value, context_length)
        if not understood:
            left_out.append(f"{_shown_name(name)} {shown(value)}")
    ends = [token for token in _as_list(config.get("eos_token_id")) if _is_id(token)]
    if vocab_size is not None and not _leaves_any(found.get("banned_ids", []), ends, vocab_size):
        del found["banned_ids"]
        bans = [name for name in config if LISTS.get(name) == "banned_ids" and config[name]]
        left_out += [f"{name} {shown(config[name])}, which leaves no token to say" for name in bans]
    if samples and _is_number(config.get("top_p")) and config["top_p"] == 0:
        found["top_k"] = 1  # the smallest set that transformers keeps is the best token
    return found, left_out


def fitted(found: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Both together; where they contradict each other the hint gives way."""
    values = {**found, **changes}
    least, most = values.get("min_tokens"), values.get("max_tokens")
    if least is not None and most is not None and _is_number(least) and _is_number(most) and least > most:
        if "min_tokens" not in changes:
            values["min_tokens"] = most
        elif "max_tokens" not in changes:
            del values["max_tokens"]
    if "banned_ids" not in changes and "banned_ids" in found and changes.get("allowed_ids") is not None:
        values["banned_ids"] = [token for token in found["banned_ids"] if token not in changes["allowed_ids"]]
    return values


def _read_number(found: dict[str, Any], infos: Mapping[str, FieldInfo], name: str, value: Any) -> bool:
    ours, low, high = NUMBERS[name]
    if value is None:
        return True
    # transformers lets a share above 1 do nothing; who writes one means something else.
    if not _is_number(value) or value in (inf, -inf) or value > high:
        return False
    if value <= low or value == high or (name == "top_p" and value == 0):
        return True
    info = infos[ours]
    if info.kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        found[ours] = CHECKS[info.kind](info, value)
    except BadRequest:
        return False
    return True


def _read_list(found: dict[str, Any], name: str, value: Any, config: Mapping[str, Any], vocab_size: int | None) -> Any:
    """Take the entries that are understood, and give the others."""
    if name == "stop_strings" and isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return value
    entries = [(entry, _entry(name, entry)) for entry in value]
    ends = _as_list(config.get("eos_token_id")) if name == "bad_words_ids" else []
    beyond = vocab_size if LISTS[name] == "banned_ids" else None
    # An end is never a bad word, as in transformers; and what the model lacks it cannot say.
    taken = [read for _, read in entries if read is not None and read not in ends]
    if kept := [read for read in taken if beyond is None or (isinstance(read, int) and read < beyond)]:
        found[LISTS[name]] = list(dict.fromkeys([*found.get(LISTS[name], []), *kept]))
    return [entry for entry, read in entries if read is None]


def _entry(name: str, entry: Any) -> int | str | None:
    """An entry of a list as SamplingParams wants it, None where it is not understood."""
    if name == "stop_strings":
        return entry if isinstance(entry, str) and entry else None
    if name == "bad_words_ids":
        entry = entry[0] if isinstance(entry, list) and len(entry) == 1 else None
    return entry if _is_id(entry) else None


def _says_nothing(name: str, value: Any, context_length: int | None) -> bool:
    """Whether a field that is not read would change no token."""
    if name in ("eos_token_id", "bos_token_id"):
        return all(_is_id(token) for token in _as_list(value))
    if name == "do_sample":
        return value is None or value in (0, 1)
    if name == "max_length":
        reaches_all = context_length is not None and _is_number(value) and value >= context_length
        return reaches_all or value is None or value == MAX_LENGTH
    if name in ELSEWHERE or name.startswith(PREFIXES):
        return True
    is_one = _is_number(value) and value == 1 and not name.endswith("_id")
    return not value or is_one


def _leaves_any(banned: list[int], ends: list[int], vocab_size: int) -> bool:
    """Whether a ban leaves a token that is no end; only a ban of as many is compared with the whole vocabulary."""
    taken = {*banned, *ends} if banned else set()
    return len(taken) < vocab_size or not taken.issuperset(range(vocab_size))


def _shown_name(name: str) -> str:
    return name if name.isprintable() and len(name) <= NAME_SHOWN else f"{repr(name[:NAME_SHOWN])[1:-1]}..."


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
