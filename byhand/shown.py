"""How a value shows itself: at Python's prompt, in notebooks, as JSON, as a table. Who can draw it registers here.

The values of types.py ask; reprs.py, html.py, jsonable.py and frames.py answer, and `byhand/__init__.py` loads them. So
what draws a value knows the value, and no value knows what draws it.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NoReturn


def _nobody(value: object) -> NoReturn:
    raise TypeError(f"nothing here can show a {type(value).__name__}")


@singledispatch
def as_repr(value: object) -> str:
    """What Python's prompt shows."""
    _nobody(value)


@singledispatch
def as_text(value: object) -> str:
    """What print() shows."""
    _nobody(value)


@singledispatch
def as_html(value: object) -> str:
    """What a notebook shows."""
    _nobody(value)


@singledispatch
def as_dict(value: object) -> dict[str, Any]:
    """JSON's own types, as records and `--json` hold them."""
    _nobody(value)


@singledispatch
def as_frame(value: object) -> Any:
    """A DataFrame of pandas."""
    _nobody(value)
