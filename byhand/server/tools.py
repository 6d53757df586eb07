"""Calls of tools in a model's text: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes and Qwen have it.

Only where the checkpoint's template teaches this form; text in any other form stays text.
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


def teaches_calls(llm: LLM) -> bool:
    """Whether the template that is given tools asks for calls in this form."""
    return BEGIN in llm.template.source(with_tools=True)


def _called(text: str) -> list[CalledFunction]:
    """What stands between the marks: a call or a list of them; ValueError where it is neither."""
    value = json.loads(text)
    return [_function(call) for call in (value if isinstance(value, list) else [value])]


def _function(call: Any) -> CalledFunction:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ValueError("no call")
    arguments = call.get("arguments", {})
    told = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    return CalledFunction(name=call["name"], arguments=told)


class ToolText:
    """One choice's text as it comes, parted into what is said and what is called."""

    def __init__(self) -> None:
        self.count = 0
        self._matcher = StopStrings((BEGIN,))
        self._call: str | None = None  # the text since BEGIN
        self._after_call = False  # white space between calls says nothing

    def push(self, text: str) -> tuple[str, list[CalledTool]]:
        """Take more text: what is surely said, and the calls that it completes."""
        said = ""
        calls: list[CalledTool] = []
        for character in text:
            safe, mark = self._matcher.push(character)
            if self._call is not None:
                self._call += safe
            elif safe and not (self._after_call and safe.isspace()):
                said, self._after_call = said + safe, False
            if mark == BEGIN:
                self._call, self._matcher = "", StopStrings((END,))
            elif mark == END:
                as_it_was, new = self._end_call(END)
                said, calls = said + as_it_was, calls + new
        return said, calls

    def flush(self) -> tuple[str, list[CalledTool]]:
        """The same for what was held back: nothing more comes. Some models leave the last mark out."""
        rest = self._matcher.flush()
        if self._call is None:
            return rest, []
        self._call += rest
        return self._end_call("")

    def _end_call(self, mark: str) -> tuple[str, list[CalledTool]]:
        """The calls since BEGIN, or, where they are none, the text as it was."""
        text, self._call, self._matcher = self._call or "", None, StopStrings((BEGIN,))
        try:
            functions = _called(text)
        except (ValueError, RecursionError):
            return BEGIN + text + mark, []
        first, self.count, self._after_call = self.count, self.count + len(functions), True
        return "", [
            CalledTool(index=index, id=made_id("call"), type="function", function=function)
            for index, function in enumerate(functions, first)
        ]
