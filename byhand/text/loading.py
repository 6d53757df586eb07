"""From files to a working tokenizer: tokenizer.json, or the vocab.json and merges.txt of older checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel as ByteLevelDecoder

from byhand.errors import BadConfig, ByhandError, CheckpointError
from byhand.lookalikes import check_itself
from byhand.text.files import AddedEntry, TokenizerFiles

Result = TypeVar("Result")

# Qwen's way of cutting text into words: as GPT-2's, but digits one by one and line ends kept with what is before.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What people put into a checkpoint instead of a tokenizer.json, and we do not read.
_FOREIGN = ("tokenizer.model", "spiece.model", "tekken.json", "qwen.tiktoken", "vocab.txt")


@dataclass(frozen=True, slots=True)
class Style:
    """A family that ships vocab.json and merges.txt, and what its files leave unsaid."""

    is_qwen: bool = False
    defaults: Mapping[str, str] = field(default_factory=dict)
    starts_with_bos: bool = False


_END = "<|endoftext|>"
GPT2 = Style(defaults={"bos_token": _END, "eos_token": _END, "unk_token": _END})
OPT = Style(
    defaults={"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"},
    starts_with_bos=True,
)
QWEN = Style(is_qwen=True, defaults={"eos_token": _END, "unk_token": _END, "pad_token": _END})

STYLES = {"GPT2Tokenizer": GPT2, "Qwen2Tokenizer": QWEN, "gpt2": GPT2, "opt": OPT, "qwen2": QWEN, "qwen3": QWEN}


def guarded(action: Callable[[], Result], refuse: Callable[[str], ByhandError]) -> Result:
    """Call into the tokenizers library; whatever it raises, a panic of its Rust side too, becomes a sentence."""
    try:
        return action()
    except BaseException as problem:
        is_panic = type(problem).__name__ == "PanicException"
        if isinstance(problem, Exception) or is_panic:
            raise refuse(str(problem).strip().split("\n")[0]) from None
        raise


def load_backend(files: TokenizerFiles) -> tuple[tokenizers.Tokenizer, dict[str, str | None]]:
    """The tokenizer of a folder, with its named special tokens (`bos_token`, ...), defaults filled in."""
    named = files.named_tokens()
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        check_itself(files.folder / name, BadConfig)
    if files.has("tokenizer.json"):
        backend = _from_tokenizer_json(files)
        _add_missing(backend, files, named)
    elif files.has("vocab.json", "merges.txt"):
        style = style_of(files)
        backend = _from_vocab_and_merges(files, style)
        _add_missing(backend, files, named)
        named = _known_defaults(backend, style) | named
        _add_missing(backend, files, named)
        _check_added_ids(backend, files.added_entries())
        _put_bos_and_eos(backend, files, named, style)
    else:
        _refuse_folder(files)
    # Limits that a tokenizer.json may carry from its training: nothing is cut or filled up here.
    backend.no_truncation()
    backend.no_padding()
    return backend, named


def style_of(files: TokenizerFiles) -> Style:
    """Which family's vocab.json and merges.txt these are."""
    if files.model_type == "opt" and files.kind in (None, "GPT2Tokenizer"):
        return OPT
    for name in (files.kind, files.model_type):
        if name is not None and name in STYLES:
            return STYLES[name]
    if files.kind is not None or files.model_type is not None:
        what = files.kind or files.model_type
        raise CheckpointError(
            f"{files.folder} has vocab.json and merges.txt for {what}, which byhand knows only as a tokenizer.json",
            hint=f"with these files it reads {', '.join(sorted(STYLES))}; save the tokenizer as tokenizer.json",
        )
    return _style_by_vocabulary(files)


def _style_by_vocabulary(files: TokenizerFiles) -> Style:
    """No file names the family: OPT's first entries (`<s>`, `<pad>`, `</s>`) tell it from GPT-2."""
    vocabulary = _bpe(files).token_to_id
    return OPT if [vocabulary(text) for text in ("<s>", "<pad>", "</s>")] == [0, 1, 2] else GPT2


def _from_tokenizer_json(files: TokenizerFiles) -> tokenizers.Tokenizer:
    path = files.folder / "tokenizer.json"
    return guarded(
        lambda: tokenizers.Tokenizer.from_file(str(path)),
        lambda reason: BadConfig(f"{path} is no tokenizer that can be read: {reason}"),
    )


def _known_defaults(backend: tokenizers.Tokenizer, style: Style) -> dict[str, str | None]:
    return {name: text for name, text in style.defaults.items() if backend.token_to_id(text) is not None}


def _bpe(files: TokenizerFiles) -> models.BPE:
    vocabulary, merges = str(files.folder / "vocab.json"), str(files.folder / "merges.txt")
    return guarded(
        lambda: models.BPE.from_file(vocabulary, merges),
        lambda reason: BadConfig(f"{vocabulary} and merges.txt are no vocabulary that can be read: {reason}"),
    )


def _from_vocab_and_merges(files: TokenizerFiles, style: Style) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(_bpe(files))
    prefix = files.tokenizer_config.get("add_prefix_space") is True
    backend.decoder = ByteLevelDecoder()
    if not style.is_qwen:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        return backend
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
    return backend


def _add_missing(backend: tokenizers.Tokenizer, files: TokenizerFiles, named: Mapping[str, str | None]) -> None:
    """Add the tokens that the other files name, in the order of their ids, as transformers does."""
    # Those of the vocabulary itself are added too: only so are they found in a text before it is cut into words.
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = [entry for _, entry in sorted(files.added_entries().items())]
    texts = [*(text for text in named.values() if text), *files.extra_tokens()]
    entries = {entry.content: entry for entry in [*listed, *map(AddedEntry, texts)][::-1]}
    for content in dict.fromkeys([entry.content for entry in listed] + texts):
        if content and content not in known:
            backend.add_tokens([_added_token(entries[content])])


def _added_token(entry: AddedEntry) -> AddedToken:
    return AddedToken(
        entry.content,
        special=entry.special,
        normalized=entry.normalized,
        lstrip=entry.lstrip,
        rstrip=entry.rstrip,
        single_word=entry.single_word,
    )


def _check_added_ids(backend: tokenizers.Tokenizer, entries: Mapping[int, AddedEntry]) -> None:
    """Ids beyond vocab.json are given in turn, so a gap in the files would shift the meaning of every later one."""
    for token_id, entry in sorted(entries.items()):
        found = backend.token_to_id(entry.content)
        if found != token_id:
            raise BadConfig(f"{entry.content!r} should have the id {token_id}, but the vocabulary makes it {found}")


def _put_bos_and_eos(
    backend: tokenizers.Tokenizer, files: TokenizerFiles, named: Mapping[str, str | None], style: Style
) -> None:
    """With no tokenizer.json to say it, `add_bos_token` and `add_eos_token` decide what stands around a text."""
    first = _flag(files.tokenizer_config, "add_bos_token", style.starts_with_bos) and named.get("bos_token")
    last = _flag(files.tokenizer_config, "add_eos_token", False) and named.get("eos_token")
    around = {text: backend.token_to_id(text) for text in (first, last) if text}
    if around:
        parts = [f"{first}:0" if first else "", "$A:0", f"{last}:0" if last else ""]
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join(part for part in parts if part), pair=None, special_tokens=list(around.items())
        )


def _flag(settings: Mapping[str, Any], name: str, default: bool) -> bool:
    value = settings.get(name)
    return value if isinstance(value, bool) else default


def _refuse_folder(files: TokenizerFiles) -> NoReturn:
    foreign = next((name for name in _FOREIGN if files.has(name)), None)
    if foreign:
        raise CheckpointError(
            f"{files.folder} has {foreign} and no tokenizer.json; byhand reads tokenizer.json",
            hint="transformers writes one: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    raise CheckpointError(f"{files.folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt")
