"""The line of code that makes a number: byhand's own source as numbered lines, the named part marked. No torch here."""

from __future__ import annotations

import ast
from functools import lru_cache
from html import escape
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from byhand.server.page import Asset, asset_of, send
from byhand.server.problems import ApiError

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · byhand</title><link rel="icon" href="/web/icon.svg">
<link rel="stylesheet" href="/web/base.css"><link rel="stylesheet" href="/web/source.css">
</head><body class="source"><main><h1>{title}</h1><ol class="code" tabindex="0" aria-label="source code">{lines}</ol>
</main></body></html>
"""


def _read(path: str) -> str | None:
    """A Python file of the package; names that are no plain parts of a path lead nowhere."""
    parts = path.split("/")
    if not path.endswith(".py") or not all(part.removesuffix(".py").isidentifier() for part in parts):
        return None
    found = files("byhand").joinpath(*parts)
    return found.read_text(encoding="utf-8") if found.is_file() else None


def lines_of(source: str, name: str) -> range:
    """The lines of a function, class or assignment of this name (`Class.method` too), counted from 1; empty if none."""
    body: list[ast.stmt] = ast.parse(source).body
    found: ast.stmt | None = None
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        body = getattr(found, "body", [])
    return range(found.lineno, (found.end_lineno or found.lineno) + 1) if found is not None else range(0)


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _line(number: int, text: str, marked: range) -> str:
    mark = ' class="marked"' if number in marked else ""
    anchor = ' id="here"' if len(marked) and number == marked.start else ""
    return f"<li{mark}{anchor}>{escape(text) or ' '}</li>"


@lru_cache(maxsize=32)
def page_of(path: str, name: str) -> Asset | None:
    """The file as a page, with the lines of `name` marked; the link to it ends in #here."""
    source = _read(path)
    if source is None:
        return None
    marked = lines_of(source, name)
    lines = "".join(_line(number, text, marked) for number, text in enumerate(source.splitlines(), 1))
    html = PAGE.format(title=escape(f"byhand/{path}"), lines=lines)
    return asset_of(html.encode(), "text/html; charset=utf-8")


async def source(path: str, request: Request) -> Response:
    """A file of byhand's own code, to read beside the number that it makes."""
    found = page_of(path, request.query_params.get("at", "")[:80])
    if found is None:
        raise ApiError(404, "byhand has no source file of this name", code="not_found")
    return send(found, request)
