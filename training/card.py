"""Write the model card from its text and the evaluation: `python -m training.card`."""

import argparse
import json
from pathlib import Path
from string import Template
from typing import Any, Final

from training.export import DEFAULT_OUT

HERE: Final = Path(__file__).parent


def quote(text: str) -> str:
    """A passage as a Markdown quotation; its own line ends kept."""
    return "\n".join(f"> {line}".rstrip() + "  " for line in text.strip().split("\n"))


def shown(prompt: str, made: str, ended: bool) -> str:
    """A prompt in bold, what came after it, and how it ended."""
    return quote(f"**{prompt}**{made} {'`</s>`' if ended else '…'}")


def samples(made: dict[str, list[Any]], gap: str) -> str:
    """Several prompts with what came after them."""
    return "\n\n".join(shown(prompt, gap + text, ended) for prompt, (text, ended) in made.items())


def training_fields(results: dict[str, Any]) -> dict[str, str]:
    """What the card says of the training."""
    run, read = results["training"], results["training"]["tokens_by_source"]
    stories = read["stories"] + read["story chats"]
    return {
        "parameters_millions": f"{run['parameters'] / 1e6:.1f}",
        "minutes": f"{run['minutes']:.0f}",
        "steps": f"{run['steps']:,}",
        "tokens": f"{run['tokens'] / 1e6:.1f} million",
        "tokens_stories": f"{stories / 1e6:.1f} million",
        "tokens_tales": f"{read['tales'] / 1e6:.1f} million",
        "tokens_synthetic": f"{(read['synthetic'] + read['chats']) / 1e6:.1f} million",
        "rounds": f"{stories / 0.98e6:.0f}",
    }


def score_fields(results: dict[str, Any]) -> dict[str, str]:
    """What the card says of the evaluation."""
    held_out, stories, made = results["held_out"], results["stories"], results["samples"]
    first, ended = made["stories"][0]
    rows = [(n, f"{r['perplexity']:.2f}", f"{r['bits_per_byte']:.3f}") for n, r in held_out.items()]
    tasks = [(name.replace("_", " "), f"{right:.1%}") for name, right in results["tasks"].items()]
    return {name: str(figure) for name, figure in stories.items()} | {
        "copied_share": f"{stories['copied_share']:.1%}",
        "copied_share_of_held_out": f"{stories['copied_share_of_held_out']:.1%}",
        "held_out_rows": "\n".join(f"| {' | '.join(row)} |" for row in rows),
        "task_rows": "\n".join(f"| {' | '.join(row)} |" for row in tasks),
        "greedy_samples": samples(made["greedy"], ""),
        "chat_samples": samples(made["chat_greedy"], " "),
        "story_sample": shown("", first, ended).replace("****", ""),
    }


def main() -> None:
    """Fill the card's places."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--results", type=Path, default=HERE / "evaluation.json")
    args = parser.parse_args()
    results = json.loads(args.results.read_text(encoding="utf-8"))
    config = json.loads((args.folder / "config.json").read_text(encoding="utf-8"))
    size = (args.folder / "model.safetensors").stat().st_size
    fields = {name: str(value) for name, value in config.items()}
    fields |= training_fields(results) | score_fields(results) | {"size_mb": f"{size / 1e6:.1f}"}
    card = Template((HERE / "card.md").read_text(encoding="utf-8")).substitute(fields)
    (args.folder / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
