"""Score a finished folder with transformers: `python -m training.evaluate`."""

import argparse
import math
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from training import facts, score
from training.data import DEFAULT_CORPORA, Corpora, load_corpora
from training.export import DEFAULT_OUT, load_checkpoint
from training.synthetic import is_held_out_sum
from training.tokenizer import write_json

SEEDS: Final = 20
STORY_TOKENS: Final = 600
LESSONS: Final = [
    "A list of colors: red",
    "A list of colors:",
    "A list of animals: dog, cat",
    "Days of the week: Monday, Tuesday",
    "1, 2, 3, 4,",
    "2 + 2 =",
    "The capital of France is",
    "Once upon a time",
]
CHATS: Final = [
    "Hello!",
    "What color is the sky?",
    "Name three animals.",
    "Count to five.",
    "What is the capital of Italy?",
    "Who are you?",
    "Tell me a story about a cat.",
]


class Reader:
    """The folder's model and tokenizer, as transformers loads them."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.train(False)

    def chat(self, content: str) -> str:
        """One question as the chat template writes it."""
        turns = [{"role": "user", "content": content}]
        shown = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return str(shown)

    @torch.no_grad()
    def write(self, prompt: str, limit: int, **options: Any) -> tuple[str, bool]:
        """The continuation of a prompt, and whether it ended by itself."""
        bare = prompt.removeprefix("<s>")
        inputs = self.tokenizer(bare, return_tensors="pt", return_token_type_ids=False)
        made = self.model.generate(**inputs, max_new_tokens=limit, **options)[0]
        new = made[inputs["input_ids"].shape[1] :].tolist()
        ended = bool(new) and new[-1] == self.tokenizer.eos_token_id
        return str(self.tokenizer.decode(new, skip_special_tokens=True)), ended

    def greedy(self, prompt: str, limit: int = 60) -> tuple[str, bool]:
        """The likeliest continuation."""
        # The folder's own sampling defaults are put out, or transformers warns of them.
        return self.write(prompt, limit, do_sample=False, temperature=None, top_p=None)

    @torch.no_grad()
    def loss(self, text: str) -> tuple[float, int]:
        """Summed loss and number of the text's tokens, its end included, 2,048 at a time."""
        ids = [*self.tokenizer(text)["input_ids"], self.tokenizer.eos_token_id]
        total, scored = 0.0, 0
        for start in range(0, len(ids) - 1, 2048):
            part = torch.tensor(ids[start : start + 2048])
            logits = self.model(part[None]).logits[0, :-1]
            total += F.cross_entropy(logits, part[1:], reduction="sum").item()
            scored += len(part) - 1
        return total, scored


def perplexities(reader: Reader, corpora: Corpora) -> dict[str, dict[str, float]]:
    """Perplexity of each held-out part, per token, and bits for each byte of its text."""
    table = {}
    for name, texts in corpora.held_out.items():
        losses = [reader.loss(text) for text in texts]
        total, tokens = sum(loss for loss, _ in losses), sum(count for _, count in losses)
        size = sum(len(text.encode()) for text in texts)
        table[name] = {
            "documents": len(texts),
            "tokens": tokens,
            "perplexity": round(math.exp(total / tokens), 2),
            "bits_per_byte": round(total / math.log(2) / size, 3),
        }
    return table


def sampled_stories(reader: Reader) -> list[tuple[str, bool]]:
    """One story for each seed, at temperature 0.8 and nothing else."""
    stories = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": 0.8, "top_p": 1.0, "top_k": 0}
        text, ended = reader.write("Once upon a time", STORY_TOKENS, **options)
        stories.append(("Once upon a time" + text, ended))
    return stories


def score_stories(stories: list[tuple[str, bool]], corpora: Corpora) -> dict[str, float]:
    """The score over the seeds, beside what held-out stories would get."""
    known = score.all_grams([*corpora.stories, *corpora.tales])
    texts = [text for text, _ in stories]
    held_out = corpora.held_out["stories"]
    return {
        "seeds": len(stories),
        "ended_by_itself": sum(ended for _, ended in stories),
        "looped": sum(map(score.loops, texts)),
        "mean_words": round(sum(len(score.words_of(text)) for text in texts) / len(texts)),
        "copied_share": round(score.share(m for t in texts for m in score.copied(t, known)), 3),
        "copied_share_of_held_out": round(score.share(m for t in held_out for m in score.copied(t, known)), 3),
        "longest_copy_words": max(score.longest_copy(text, known) for text in texts),
    }


def right(reader: Reader, asked: dict[str, str]) -> float:
    """The share of questions whose greedy answer holds the word expected."""
    marks = [
        wanted in reader.greedy(reader.chat(question), 30)[0].replace(".", " ").split()
        for question, wanted in asked.items()
    ]
    return round(score.share(marks), 3)


def sums(held_out: bool) -> dict[str, str]:
    """Sums up to ten plus ten, trained on or kept back."""
    pairs = [(a, b) for a in range(11) for b in range(11) if is_held_out_sum(a, b) is held_out]
    chosen = pairs if held_out else pairs[:: len(pairs) // 12]
    return {f"What is {a} + {b}?": str(a + b) for a, b in chosen}


def tasks(reader: Reader) -> dict[str, float]:
    """Accuracy, greedy, on what the synthetic text teaches."""
    capitals = {f"What is the capital of {land}?": city.split()[-1] for land, city in facts.CAPITALS.items()}
    lists = [(color, *reader.greedy(f"A list of colors: {color}")) for color in facts.LISTS["colors"].split(", ")]
    return {
        "sums_trained_on": right(reader, sums(held_out=False)),
        "sums_held_out": right(reader, sums(held_out=True)),
        "capitals": right(reader, capitals),
        "color_lists": round(score.share(end and score.is_color_list(color + text) for color, text, end in lists), 3),
    }


def samples(reader: Reader, stories: list[tuple[str, bool]]) -> dict[str, Any]:
    """Greedy answers to the lesson's prompts and a few chats, and the first sampled stories."""
    limit = {"Once upon a time": STORY_TOKENS, "Tell me a story about a cat.": STORY_TOKENS}
    lessons = {text: reader.greedy(text, limit.get(text, 60)) for text in LESSONS}
    chats = {text: reader.greedy(reader.chat(text), limit.get(text, 60)) for text in CHATS}
    return {
        "greedy": {text: [made, ended] for text, (made, ended) in lessons.items()},
        "chat_greedy": {text: [made, ended] for text, (made, ended) in chats.items()},
        "stories": [[text, ended] for text, ended in stories],
    }


def run_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its training."""
    saved = load_checkpoint(checkpoint)
    minutes = round(saved["seconds"] / 60, 1)
    return {"steps": saved["step"], "tokens": saved["tokens"], "minutes": minutes,
            "parameters": sum(weight.numel() for weight in saved["model"].values()),
            "tokens_by_source": saved["mixed"]}  # fmt: skip


def show(results: dict[str, Any]) -> None:
    """Print the results as tables."""
    for part in ("training", "held_out", "stories", "tasks"):
        print(f"\n| {part} | |\n|---|---|")
        for name, figure in results[part].items():
            print(f"| {name} | {figure} |")
    for part, made in results["samples"].items():
        print(f"\n## {part}")
        for entry in made.items() if isinstance(made, dict) else enumerate(made):
            print(f"\n{entry[0]!r} -> {entry[1][0]!r} {'</s>' if entry[1][1] else '…'}")


def main() -> None:
    """Evaluate, print the tables, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="what the folder was exported from")
    parser.add_argument("--folder", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--corpora", type=Path, default=DEFAULT_CORPORA)
    parser.add_argument("--out", type=Path, default=Path("training/evaluation.json"))
    args = parser.parse_args()
    reader, corpora = Reader(args.folder), load_corpora(args.corpora)
    stories = sampled_stories(reader)
    results = {
        "training": run_of(args.checkpoint),
        "held_out": perplexities(reader, corpora),
        "stories": score_stories(stories, corpora),
        "tasks": tasks(reader),
        "samples": samples(reader, stories),
    }
    show(results)
    write_json(args.out, results)


if __name__ == "__main__":
    main()
