"""bfloat16: float32 without its last 16 bits."""

from __future__ import annotations

from typing import ClassVar

from byhand.formats.floats import FloatFormat


class Bfloat16(FloatFormat):
    """bfloat16."""

    name: ClassVar[str] = "bfloat16"
    bits: ClassVar[float] = 16


FORMAT = Bfloat16()
