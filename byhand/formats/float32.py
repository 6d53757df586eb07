"""float32: IEEE 754's 32 bits: what all arithmetic is done in."""

from __future__ import annotations

from typing import ClassVar

from byhand.formats.floats import FloatFormat


class Float32(FloatFormat):
    """float32."""

    name: ClassVar[str] = "float32"
    bits: ClassVar[float] = 32


FORMAT = Float32()
