"""A checkpoint's tokenizer files read as data: which names the special tokens have, which vocabulary lies there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from byhand.checkpoint import read_json_object
from byhand.errors import BadConfig, CheckpointNotFound

# The names that every tokenizer may give a token; a chat template reads them by these names.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True)
class AddedEntry:
    """A token put beside the vocabulary: found in a text before anything else is."""

    content: str
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the files beside the vocabulary say; a file that is not there is an empty object."""

    folder: Path
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    special_tokens_map: Mapping[str, Any] = field(default_factory=dict)
    added_tokens: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    generation_config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Read every file of the folder that says something about its tokenizer, but the vocabulary itself."""
        if not folder.is_dir():
            raise CheckpointNotFound(f"there is no folder {folder}")
        names = ("tokenizer_config", "special_tokens_map", "added_tokens", "config")
        found = {name: _read_if_there(folder / f"{name}.json") for name in names}
        with suppress(BadConfig):  # a hint, which refuses nothing; the checkpoint's notes say what is wrong with it
            found["generation_config"] = _read_if_there(folder / "generation_config.json")
        return cls(folder, **found)

    def has(self, *names: str) -> bool:
        """True where the folder has all these files."""
        return all((self.folder / name).is_file() for name in names)

    @property
    def kind(self) -> str | None:
        """The class the tokenizer says it is of ("GPT2Tokenizer"), else what the model's type makes of it."""
        for source in (self.tokenizer_config, self.config):
            name = source.get("tokenizer_class")
            if isinstance(name, str):
                return name.removesuffix("Fast")
        return None

    @property
    def model_type(self) -> str | None:
        """config.json's `model_type`."""
        name = self.config.get("model_type")
        return name if isinstance(name, str) else None

    def settings(self) -> dict[str, Any]:
        """tokenizer_config.json; where it is of the old sort, special_tokens_map.json has the last word."""
        settings = dict(self.tokenizer_config)
        if "added_tokens_decoder" not in settings:
            settings.update(self.special_tokens_map)
        return settings

    def named_tokens(self) -> dict[str, str | None]:
        """`bos_token`, `eos_token` and the like: text, or None where a file says null."""
        settings = self.settings()
        return {name: _content(settings[name], name) for name in NAMED if name in settings}

    def extra_tokens(self) -> list[str]:
        """Special tokens beyond the named ones."""
        settings = self.settings()
        listed = [item for name in _EXTRA for item in _items(settings.get(name))]
        contents = [_content(item, "additional_special_tokens") for item in listed]
        return [content for content in contents if content]

    def added_entries(self) -> dict[int, AddedEntry]:
        """The tokens that tokenizer_config.json, or the older added_tokens.json, puts beside the vocabulary."""
        decoder = self.tokenizer_config.get("added_tokens_decoder")
        if decoder is None:
            return dict(self._older_added_entries())
        if not isinstance(decoder, Mapping):
            raise BadConfig("tokenizer_config.json: `added_tokens_decoder` must be an object")
        return {_id(token_id): _entry(token_id, value) for token_id, value in decoder.items()}

    def token_ids(self, name: str) -> frozenset[int]:
        """The ids under `name` (a number or a list) in config.json and generation_config.json together.

        The latter is a hint: what is no id there is left out.
        """
        said = [_checked_id(token_id, name, "config.json") for token_id in _items(self.config.get(name))]
        hinted = [token_id for token_id in _items(self.generation_config.get(name)) if _is_id(token_id)]
        return frozenset([*said, *hinted])

    def _older_added_entries(self) -> Iterator[tuple[int, AddedEntry]]:
        special = {*self.extra_tokens(), *self.named_tokens().values()}
        for content, token_id in self.added_tokens.items():
            number = _checked_id(token_id, content, "added_tokens.json")
            is_special = content in special
            yield number, AddedEntry(content, special=is_special, normalized=not is_special)


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _items(value: Any) -> list[Any]:
    """A list as it is, an object's values, nothing for null, anything else as a list of one."""
    if value is None:
        return []
    if isinstance(value, Mapping) and "content" not in value:
        return list(value.values())
    return list(value) if isinstance(value, list) else [value]


def _content(value: Any, name: str) -> str | None:
    """A token's text, which the files write as text or as an object with `content`."""
    content = value.get("content") if isinstance(value, Mapping) else value
    if content is None or isinstance(content, str):
        return content
    raise BadConfig(f"tokenizer_config.json: `{name}` is {content!r}; it must be text")


def _entry(token_id: str, value: Any) -> AddedEntry:
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise BadConfig(f"tokenizer_config.json: `added_tokens_decoder` has no `content` for the id {token_id}")
    flags = {name: bool(value.get(name)) for name in ("special", "normalized", "lstrip", "rstrip", "single_word")}
    return AddedEntry(value["content"], **flags)


def _id(text: str) -> int:
    if not text.isdecimal():
        raise BadConfig(f"tokenizer_config.json: `added_tokens_decoder` has {text!r} where an id belongs")
    return int(text)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _checked_id(token_id: Any, name: str, place: str) -> int:
    if not _is_id(token_id):
        raise BadConfig(f"{place}: `{name}` is {token_id!r}; it must be a token id, or a list of them")
    return int(token_id)
