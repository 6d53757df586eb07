"""The checkpoint's chat template: messages in, prompt text out. It is a stranger's program; see render_worker.py.

The text is to be encoded with `add_special_tokens=False`: a template writes its own start-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from byhand.checkpoint import read_json_object
from byhand.errors import BadConfig, BadRequest, TemplateError
from byhand.lookalikes import check_itself
from byhand.text.messages import check_messages, check_roles, check_tools, plain
from byhand.text.renderer import Renderer
from byhand.text.tokenizer import Tokenizer

# Put behind a message that is to be continued, and cut away with all that the template writes after it. Its
# last space shows whether the template trims its messages: then the message to continue is trimmed as well.
_MARK = "(the message goes on here) "


class ChatTemplate:
    """One template, or several by name (then "tool_use" is taken where there are tools, else "default")."""

    def __init__(
        self,
        source: str | Mapping[str, str] | None,
        special_tokens: Mapping[str, str] | None = None,
        *,
        seconds: float = 2.0,
    ) -> None:
        sources = {"default": source} if isinstance(source, str) else dict(source or {})
        self.sources: dict[str, str] = sources
        self.special_tokens = dict(special_tokens or {})
        self._renderer = Renderer(seconds)

    @classmethod
    def open(cls, folder: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The template of a checkpoint's folder; one that has none can be opened, and says so when it is used."""
        return cls(read_sources(Path(folder)), tokenizer.special_tokens)

    def __bool__(self) -> bool:
        """True where there is a template."""
        return bool(self.sources)

    def render(
        self,
        messages: object,
        *,
        add_generation_prompt: bool = True,
        tools: object = None,
        continue_final: bool = False,
        **values: Any,
    ) -> str:
        """The prompt's text. `continue_final` leaves the last message open; `values` are switches of the template."""
        source = self.source(with_tools=tools is not None)
        checked = check_messages(messages)
        check_roles(checked, source)
        if continue_final:
            _mark_end(checked)
        given = {name: plain(value, name) for name, value in values.items()}
        text = self._renderer.render(
            source,
            {
                **self.special_tokens,
                **given,
                "messages": checked,
                "tools": check_tools(tools),
                "documents": given.get("documents"),
                "add_generation_prompt": add_generation_prompt and not continue_final,
            },
        )
        return _cut_at_mark(text) if continue_final else text

    def source(self, *, with_tools: bool = False) -> str:
        """The template's text, of several the one that fits."""
        if not self.sources:
            raise TemplateError(
                "this checkpoint has no chat template, so it cannot read messages",
                param="messages",
                hint="give it a prompt as text",
            )
        name = "tool_use" if with_tools and "tool_use" in self.sources else "default"
        if name not in self.sources:
            names = ", ".join(sorted(self.sources))
            raise TemplateError(f"this checkpoint has chat templates named {names}, and none named default")
        return self.sources[name]

    def close(self) -> None:
        """End the process that renders; it starts again when it is needed."""
        self._renderer.close()


def read_sources(folder: Path) -> dict[str, str]:
    """The templates of a folder by name: files of their own before the older places in JSON."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = {name: _read_text(path) for name, path in files.items() if path.is_file()}
    for name in ("tokenizer_config.json", "chat_template.json"):
        if not found and (folder / name).is_file():
            found = _named_sources(read_json_object(folder / name).get("chat_template"), name)
    return found


def _named_sources(value: Any, place: str) -> dict[str, str]:
    """One template as text, or a list of {name, template}."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "template")):
            raise BadConfig(f"{place}: `chat_template` must be text, or a list of objects with name and template")
    return {entry["name"]: entry["template"] for entry in entries}


def _read_text(path: Path) -> str:
    check_itself(path, BadConfig)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise BadConfig(f"{path} cannot be read: {problem}") from problem


def _mark_end(messages: list[dict[str, Any]]) -> None:
    last = messages[-1]
    if "content" not in last:
        place = f"messages[{len(messages) - 1}].content"
        raise BadRequest(f"{place} is missing, so there is nothing to continue", param=place)
    messages[-1] = last | {"content": last["content"] + _MARK}


def _cut_at_mark(text: str) -> str:
    place = text.rfind(_MARK.strip())
    if place < 0:
        raise TemplateError("the chat template leaves out the last message, so it cannot be continued")
    return text[:place] if text.startswith(_MARK, place) else text[:place].rstrip()
