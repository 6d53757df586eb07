"""float16: IEEE 754's 16 bits: finer than bfloat16, and it ends at 65504."""

from __future__ import annotations

from typing import ClassVar

from byhand.formats.floats import FloatFormat


class Float16(FloatFormat):
    """float16."""

    name: ClassVar[str] = "float16"
    bits: ClassVar[float] = 16


FORMAT = Float16()
