"""The tables of docs/server.md, made from the shapes: `python -m byhand.server.manual docs/server.md` renews them."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from byhand.engine.limits import Limits
from byhand.html import between_marks
from byhand.sampling.params import fields_table
from byhand.server.shapes import ChatRequest, CompletionRequest, Sampling, Templated

HELP = {info.name: info.help for info in fields_table()}


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    branches = [branch for branch in schema.get("anyOf", [schema]) if branch.get("type") != "null"]
    words = [_one(branch) for branch in branches]
    return " or ".join(dict.fromkeys(words)) or "null"


def _one(branch: dict[str, Any]) -> str:
    if "const" in branch:
        return f"`{str(branch['const']).lower()}`"
    if "enum" in branch:
        return " or ".join(f"`{value}`" for value in branch["enum"])
    if branch.get("type") == "array":
        return f"list of {_kind(branch['items'])}"
    return str(branch.get("type", "object"))


def _range(schema: dict[str, Any]) -> str:
    for branch in schema.get("anyOf", [schema]):
        low = branch.get("minimum", branch.get("ge"))
        high = branch.get("maximum", branch.get("le"))
        above = branch.get("exclusiveMinimum", branch.get("gt"))
        if low is None and above is None:
            continue
        if low is not None and low < -(2**31):
            return "64 bits"
        first = f"{low:g}" if low is not None else f"above {above:g}"
        return first + (f" to {high:g}" if high is not None and high < 2**31 - 1 else " or more")
    return ""


def _table(model: type[BaseModel], names: list[str]) -> list[str]:
    properties = model.model_json_schema()["properties"]
    rows = ["| field | type | range | what it is |", "|---|---|---|---|"]
    for name in names:
        schema = properties[name]
        told = schema.get("description") or HELP.get(name, "as in OpenAI's API")
        rows.append(f"| `{name}` | {_kind(schema)} | {_range(schema)} | {told} |")
    return [*rows, ""]


def tables() -> str:
    """The fields of both APIs, and the limits."""
    common, templated = list(Sampling.model_fields), list(Templated.model_fields)
    own = [name for name in CompletionRequest.model_fields if name not in common]
    chat = [name for name in ChatRequest.model_fields if name not in common and name not in templated]
    lines = ["### /v1/completions alone", "", *_table(CompletionRequest, own)]
    lines += ["### /v1/chat/completions alone", "", *_table(ChatRequest, [*templated, *chat])]
    lines += ["### Both", "", *_table(CompletionRequest, common)]
    lines += ["### Limits", "", "| flag | default | what it bounds |", "|---|---|---|"]
    for info in fields(Limits):
        default = "none" if info.default is None else f"{info.default:,}"
        lines.append(f"| `--limit-{info.name.replace('_', '-')}` | {default} | {info.metadata['help']} |")
    return "\n".join(lines) + "\n"


def renewed(document: str) -> str:
    """A document whose tables are made anew."""
    return between_marks(document, "tables", tables())


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
