"""What is another every time, put into words that stay; and what is long, made short."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import numpy as np

from tests.frozen.comparing import digest

# Fields whose value is another every time, whatever it is.
VOLATILE = {"created": "<created>", "seconds": "<seconds>", "byhand": "<version>", "resume": "<resume>"}
MADE_UP = ("cmpl-", "chatcmpl-", "call_", "call-")  # how the server's own ids begin
# The bits of these hold only where all versions are the same; see `without_bits`.
BITS = "bits"
SHOWN = 3  # candidates of a step: ten at every step would say the same for more bytes


def plain(value: Any) -> Any:
    """An answer as it is kept: no ids made up, no times, six digits of a number, three candidates of a step."""
    if isinstance(value, dict):
        short = _shortened(value)
        return {name: _field(name, short[name]) for name in short}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _field(name: str, value: Any) -> Any:
    if name in VOLATILE:
        return VOLATILE[name]
    if name == "id" and isinstance(value, str) and value.startswith(MADE_UP):
        return "<id>"
    return plain(value)


def _shortened(value: dict[str, Any]) -> dict[str, Any]:
    if "chain" in value and "top" in value:
        chain = [{**stage, "logits": stage["logits"][:SHOWN]} for stage in value["chain"]]
        return {**value, "top": value["top"][:SHOWN], "chain": chain}
    if value.get("event") == "logits":
        data = b64decode(value["data"])
        first = np.frombuffer(data, "<f4")[:8].astype(float).tolist()
        named = value["tokens"][:SHOWN]
        return {**value, "data": {"bytes": len(data), "first": first, BITS: digest(data)}, "tokens": named}
    return value


def without_bits(value: Any) -> Any:
    """The same without what holds for one processor and one torch alone."""
    if isinstance(value, dict):
        return {name: without_bits(item) for name, item in value.items() if name != BITS}
    return [without_bits(item) for item in value] if isinstance(value, list) else value
