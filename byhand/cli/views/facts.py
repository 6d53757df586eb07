"""Models as they are listed and described."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from byhand.cli.views.safe import safe_line
from byhand.cli.views.terminal import BAD, QUIET, print_beside

# What a generation_config.json holds beside sampling settings.
_NO_SETTING = ("token_id", "transformers_version", "_from_model_config", "cache", "output_", "return_dict")


def print_models(console: Console, facts: dict[str, Any]) -> None:
    """The architectures, the embedded model, and what lies in the hub's cache."""
    by_file: dict[str, list[str]] = {}
    for name, file in facts["architectures"].items():
        by_file.setdefault(file, []).append(name)
    known = [Text(", ".join(names)).append(f"  byhand/models/{file}", style=QUIET) for file, names in by_file.items()]
    embedded = Text(facts["embedded"]).append("  used when no model is named", style=QUIET)
    empty = Text("nothing yet: a hub id is fetched when it is first opened", style=QUIET)
    cached = [Text(safe_line(name)) for name in facts["cached"]] or [empty]
    print_beside(
        console,
        [
            ("architectures", Text("\n").join(known)),
            ("embedded", embedded),
            ("in the cache", Text("\n").join(cached)),
        ],
        QUIET,
    )


def print_description(console: Console, facts: dict[str, Any]) -> None:
    """Everything known about one checkpoint before it is loaded."""
    architecture = Text(safe_line(facts["architecture"]))
    if not facts["can_be_opened"]:
        architecture.append(f"  {safe_line(facts['refusal'] or 'byhand has no such architecture')}", style=BAD)
    settings = [
        f"{name} {value}"
        for name, value in facts["generation_config"].items()
        if not any(word in name for word in _NO_SETTING)
    ]
    print_beside(
        console,
        [
            ("name", facts["name"]),
            ("folder", facts["folder"]),
            ("architecture", architecture),
            ("shape", _shape(facts["shape"])),
            ("context", _context(facts["context"])),
            ("weights", _weights(facts["weights"], facts["stored_as"])),
            ("tokenizer", facts["tokenizer"] or "none that byhand can read"),
            ("chat template", "yes" if facts["chat_template"] else "no"),
            ("sampling", ", ".join(settings) or "nothing suggested"),
            *_quality(facts),
            *(("note", safe_line(line)) for line in facts["notes"]),
        ],
        QUIET,
    )


def _quality(facts: dict[str, Any]) -> list[tuple[str, Text | str]]:
    """What a shorter format costs on held-out text; of a model that is quantised already, its own format alone."""
    if facts["quality"] is None:
        return []
    kind, measured = next(iter(facts["quality"]["texts"].items()))
    lines = [f"on {measured['tokens']:,} tokens of held-out {kind}, {facts['quality']['date']}"]
    for name, found in measured["variants"].items():
        if facts["quantized"] in (None, name.split(",")[0]) or name == "float32":
            beside = (
                "" if name == "float32" else f", KL {found['kl']:.2g}, the same best token {found['same_best']:.1%}"
            )
            lines.append(f"{name}: perplexity {found['perplexity']:.3f}{beside}")
    return [("quality", Text("\n".join(lines)))]


def _context(context: dict[str, Any] | None) -> str | Text:
    if context is None:
        return "unknown"
    words = f"{context['length']} tokens, by {context['origin']}"
    return words if context["note"] is None else Text(f"{words}\n{safe_line(context['note'])}")


def _shape(shape: dict[str, Any]) -> str:
    words = {
        "num_hidden_layers": "layers",
        "hidden_size": "wide",
        "num_attention_heads": "heads",
        "num_key_value_heads": "key-value heads",
        "vocab_size": "ids",
        "sliding_window": "tokens in the window",
    }
    return ", ".join(f"{shape[name]} {word}" for name, word in words.items() if name in shape)


def _weights(weights: dict[str, Any] | None, stored_as: Any) -> str:
    if weights is None:
        return f"not fetched yet ({stored_as or 'dtype not said'})"
    count = f"{_short(weights['parameters'])} parameters, " if weights["parameters"] else ""
    dtype = " and ".join(sorted(weights["dtypes"])) or stored_as or "dtype not said"
    files = len(weights["files"])
    return f"{count}{dtype}, {_short(weights['bytes'])}B in {'one file' if files == 1 else f'{files} files'}"


def _short(number: int) -> str:
    """A large number with its metric letter: 6.1 M."""
    for letter, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.{0 if number >= 100 * size else 1}f} {letter}"
    return f"{number} "
