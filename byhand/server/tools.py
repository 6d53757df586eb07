"""Calls of tools in a model's text: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes and Qwen have it.

Only where the checkpoint's template teaches this form; text in any other form stays text, and so does what is thought.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from byhand.server.answers import CalledFunction, CalledTool
from byhand.server.generation import made_id
from byhand.text import StopStrings

if TYPE_CHECKING:
    from byhand.llm import LLM

BEGIN, END = "<tool_call>", "</tool_call>"
THINK, THOUGHT = "<think>", "</think>"
CLOSING = {"{": "}", "[": "]"}


def teaches_calls(llm: LLM) -> bool:
    """Whether the template that is given tools asks for calls in this form."""
    return BEGIN in llm.template.source(with_tools=True)


def begins_in_thought(prompt: str) -> bool:
    """Whether the prompt ends where a thought has just begun, as some templates do."""
    return prompt.rstrip().endswith(THINK)


def _called(text: str) -> list[CalledFunction]:
    """What stands after the mark: a call or a list of them; ValueError where it is neither."""
    value = json.loads(text, strict=False)  # models break lines within strings
    return [_function(call) for call in (value if isinstance(value, list) else [value])]


def _function(call: Any) -> CalledFunction:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ValueError("no call")
    call["name"].encode()  # half a surrogate pair, which JSON can spell and no answer can, is a ValueError too
    given = [value for value in (call.get("arguments"), call.get("parameters")) if value not in (None, "")]
    arguments = given[0] if given else {}
    if isinstance(arguments, str):  # JSON in a string, as OpenAI's API has it
        arguments = json.loads(arguments, strict=False) or {}
    told = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    if any("\ud800" <= character <= "\udfff" for character in told):
        told = json.dumps(arguments, allow_nan=False)  # stays escaped
    return CalledFunction(name=call["name"], arguments=told)


class _Json:
    """Where an object or a list ends, or can be none; what stands in its strings does not count."""

    def __init__(self) -> None:
        self.text = ""
        self._closing: list[str] = []
        self._in_string = self._is_escaped = False

    def push(self, character: str) -> bool | None:
        """Take one more: True where the value ends with it, False where no value goes on so, None where it may."""
        if self._in_string:
            self._in_string = self._is_escaped or character != '"'
            self._is_escaped = character == "\\" and not self._is_escaped
        elif character == '"' and self._closing:
            self._in_string = True
        elif character in CLOSING:
            self._closing.append(CLOSING[character])
        elif self._closing and character == self._closing[-1]:
            self._closing.pop()
        elif character in "}]<" or not (self._closing or character.isspace()):
            return False
        self.text += character
        return True if character in "}]" and not self._in_string and not self._closing else None


class ToolText:
    """One choice's text as it comes, parted into what is said and what is called.

    thinks: the prompt has begun a thought. only_first: what comes after the first call is not told.
    """

    def __init__(self, *, thinks: bool = False, only_first: bool = False) -> None:
        self.count = 0
        self._only_first = only_first
        self._matcher = StopStrings((THOUGHT,) if thinks else (BEGIN, THINK))
        self._call: _Json | None = None
        self._closing: str | None = None  # after a call, what may be its end's mark
        self._after_call = False  # white space between calls says nothing

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be told."""
        return self._only_first and self.count > 0

    def push(self, text: str) -> tuple[str, list[CalledTool]]:
        """Take more text: what is surely said, and the calls that it completes."""
        said = ""
        calls: list[CalledTool] = []
        for character in text:
            if self.is_over:
                break
            if self._call is not None:
                as_it_was, new = self._push_call(self._call, character)
                said, calls = said + as_it_was, calls + new
            elif self._closing is not None:
                said += self._push_closing(self._closing + character)
            else:
                said += self._push_said(character)
        return said, calls

    def flush(self) -> tuple[str, list[CalledTool]]:
        """The same for what was held back: nothing more comes. Some models leave the last mark out."""
        if self._call is not None:
            return BEGIN + self._call.text, []
        return self._matcher.flush(), []

    def _push_said(self, character: str) -> str:
        safe, mark = self._matcher.push(character)
        said = "" if self._after_call and safe.isspace() else safe
        self._after_call = self._after_call and not said
        if mark == BEGIN:
            self._call = _Json()
        elif mark is not None:
            said, self._after_call = said + mark, False
            self._matcher = StopStrings((THOUGHT,) if mark == THINK else (BEGIN, THINK))
        return said

    def _push_call(self, call: _Json, character: str) -> tuple[str, list[CalledTool]]:
        """The calls since BEGIN, or, where they are none, the text as it was."""
        is_whole = call.push(character)
        if is_whole is None:
            return "", []
        self._call, self._matcher = None, StopStrings((BEGIN, THINK))
        try:
            functions = _called(call.text) if is_whole else []
        except (ValueError, RecursionError):
            functions = []
        if not functions:
            self._after_call = False
            return BEGIN + call.text + ("" if is_whole else self._push_said(character)), []
        functions = functions[:1] if self._only_first else functions
        first, self.count, self._closing = self.count, self.count + len(functions), ""
        return "", [
            CalledTool(index=index, id=made_id("call"), type="function", function=function)
            for index, function in enumerate(functions, first)
        ]

    def _push_closing(self, text: str) -> str:
        """Leave END out after a call, and the white space around it; all else is said."""
        mark = text.lstrip()
        self._closing = text if END.startswith(mark) and mark != END else None
        if self._closing is not None:
            return ""
        self._after_call = True
        return "" if mark == END else "".join(map(self._push_said, text))
