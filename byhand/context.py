"""The context: how many tokens a model reads at most, and where that number comes from. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from byhand.config import MAX_POSITIONS, ConfigFields
from byhand.errors import BadRequest

ASKED = "--context, or LLM(context=)"


@dataclass(frozen=True, slots=True)
class Context:
    """A length, what set it, what a person should know of it; how far rope scaling may reach, and how many positions
    were learned, where they were."""

    length: int
    origin: str
    note: str | None = None
    reach: int = 0
    learned: int | None = None

    @property
    def told(self) -> str:
        """The limit as a refusal states it."""
        return f"this model reads {self.length}, by {self.origin}"

    @property
    def hint(self) -> str | None:
        """How to choose another one; nothing reaches beyond learned positions."""
        if self.length == self.learned:
            return None
        up_to = "" if self.learned is None else f", up to {self.learned}"
        return f"--context N, or LLM(context=N), chooses another length{up_to}"


def read_context(config: Mapping[str, Any], learned: str | None = None, asked: int | None = None) -> Context:
    """The context that a config.json states, that its rope scaling reaches, or that is asked for.

    `learned` names the field that counts learned positions, where the architecture has such.
    """
    fields = ConfigFields(config)
    stated = _stated(fields, learned) if learned else _scaled(fields)
    return stated if asked is None else _chosen(asked, stated, learned)


def _stated(fields: ConfigFields, name: str) -> Context:
    length = fields.integer(name, high=MAX_POSITIONS)
    return Context(length, f"`{name}` in config.json", learned=length)


def _scaled(fields: ConfigFields) -> Context:
    """With its original length given, scaling reaches factor times that; without, whether the number is before or after
    scaling is anybody's guess, so it stays."""
    name = "original_max_position_embeddings"
    stated = fields.integer("max_position_embeddings", high=MAX_POSITIONS)
    origin = "`max_position_embeddings` in config.json"
    section = fields.rope_section()
    kind = section.value("rope_type", section.value("type", "default"))
    factor = section.number("factor", 1.0, low=1e-6)
    given = next((each for each in (fields, section) if each.has(name)), None)
    before = stated if given is None else given.integer(name, high=MAX_POSITIONS)
    reach = min(int(factor * before), MAX_POSITIONS)
    if kind == "default" or reach <= stated:
        return Context(stated, origin)
    if given is not None:
        return Context(reach, f"factor {factor:g} × `{name}` {before} in config.json")
    note = (
        f"the model's {kind} scaling by {factor:g} would reach {reach} tokens if `max_position_embeddings`, {stated}, "
        f"is the length before it: --context {reach}, or LLM(context={reach})"
    )
    return Context(stated, origin, note, reach)


def _chosen(asked: int, stated: Context, learned: str | None) -> Context:
    if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= MAX_POSITIONS:
        message = f"`context` is {asked!r}; it must be an integer of at least 1 and at most {MAX_POSITIONS}"
        raise BadRequest(message, param="context")
    if stated.learned is not None and asked > stated.learned:
        raise BadRequest(
            f"`context` is {asked}; this model has a table of {stated.learned} learned positions (`{learned}`), "
            "and none beyond it",
            param="context",
        )
    furthest = max(stated.length, stated.reach)
    beyond = f"a context of {asked} is longer than what the model was made for, {furthest} tokens by its config.json"
    return Context(asked, ASKED, beyond if asked > furthest else None, learned=stated.learned)
