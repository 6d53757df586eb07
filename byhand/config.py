"""A checkpoint's config.json as data: each field read by name, with its type, range and default. No torch here."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from byhand.errors import BadConfig

# Far above any model there is, far below what could exhaust memory before the weights are checked.
MAX_SIZE = 2**24
MAX_LAYERS = 10_000
MAX_HEADS = 2**16
MAX_POSITIONS = 2**30


class ConfigFields:
    """Reads fields one by one; null means absent. Every refusal names the field, the value and the limit."""

    def __init__(self, fields: Mapping[str, Any], place: str = "config.json") -> None:
        self.fields = fields
        self.place = place

    def refuse(self, name: str, rule: str) -> NoReturn:
        """Raise BadConfig for the field of this name."""
        raise BadConfig(f"{self.place}: `{name}` is {reprlib.repr(self.fields.get(name))}; it must be {rule}")

    def has(self, name: str) -> bool:
        """Say whether the field is there and not null."""
        return self.fields.get(name) is not None

    def value(self, name: str, default: Any) -> Any:
        """The raw value, or the default where it is absent; `...` as default means that it must be there."""
        value = self.fields.get(name)
        if value is not None:
            return value
        if default is ...:
            raise BadConfig(f"{self.place}: `{name}` is missing")
        return default

    def integer(self, name: str, default: Any = ..., *, low: int = 1, high: int = MAX_SIZE) -> int:
        """A whole number from `low` to `high`."""
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: Any = ..., *, low: float = 0.0, high: float = 1e12) -> float:
        """A finite number from `low` to `high`."""
        value = self.value(name, default)
        # NaN fails every comparison, and so this one.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.refuse(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.value(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    def choice(self, name: str, default: Any, known: Collection[str]) -> str:
        """One of the known words."""
        value = self.value(name, default)
        if not isinstance(value, str) or value not in known:
            self.refuse(name, f"one of {', '.join(sorted(known))}")
        return value

    def section(self, name: str) -> ConfigFields | None:
        """The fields of an object inside, or None where it is absent."""
        value = self.value(name, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self.refuse(name, "an object")
        return ConfigFields(value, f"{self.place}: {name}")

    def rope_section(self) -> ConfigFields:
        """The object with the rotary scaling; an empty one says nothing, and the older name is obeyed first."""
        found = [section for name in ("rope_scaling", "rope_parameters") if (section := self.section(name))]
        return next((section for section in found if section.fields), ConfigFields({}))

    def windows(self, num_hidden_layers: int) -> tuple[int | None, ...]:
        """Each layer's sliding window, or None where it sees everything, as Qwen's configs say it.

        `sliding_window` counts only with `use_sliding_window`, and then for the layers that `layer_types` names, or
        where that is absent for those from `max_window_layers` on.
        """
        is_used = self.flag("use_sliding_window", False) and (
            "sliding_window" not in self.fields or self.has("sliding_window")
        )
        window = self.integer("sliding_window", 4096, high=MAX_POSITIONS) if is_used else None
        first = self.integer("max_window_layers", 28, low=0) if is_used else num_hidden_layers
        default = ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_hidden_layers)]
        kinds = self.value("layer_types", default)
        known = {"full_attention", "sliding_attention"} if is_used else {"full_attention"}
        is_list = isinstance(kinds, list) and all(isinstance(kind, str) and kind in known for kind in kinds)
        if not is_list or len(kinds) != num_hidden_layers:
            self.refuse("layer_types", f"a list of {num_hidden_layers} words, each {' or '.join(sorted(known))}")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)

    def share(self, total: str, heads: str) -> int:
        """`total` divided by `heads`, which must leave no rest."""
        size, count = self.integer(total), self.integer(heads, high=MAX_HEADS)
        if size % count:
            self.refuse(total, f"a multiple of `{heads}` ({count})")
        return size // count

    def rotary_head_dim(self, default: int | None = None) -> int:
        """`head_dim` as given; where absent the default, or else an even share of `hidden_size`."""
        if self.has("head_dim"):
            found = self.integer("head_dim", high=MAX_HEADS)
        else:
            found = default or self.share("hidden_size", "num_attention_heads")
        if found % 2:
            raise BadConfig(f"{self.place}: `head_dim` is {found}; rotary positions need an even one")
        return found

    def key_value_heads(self, num_attention_heads: int) -> int:
        """`num_key_value_heads`: as many as query heads where absent; the query heads share them evenly."""
        shared = self.integer("num_key_value_heads", num_attention_heads, high=num_attention_heads)
        if num_attention_heads % shared:
            self.refuse("num_key_value_heads", f"a divisor of `num_attention_heads` ({num_attention_heads})")
        return shared
