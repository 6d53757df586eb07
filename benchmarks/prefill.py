"""How much prefill="fast" changes: what follows every place of a text, and greedy runs, beside prefill="exact".

    python -m benchmarks.prefill                       # the embedded model
    python -m benchmarks.prefill --checkpoint FOLDER   # another one too, such as those that `byhand bench` makes

"fast" takes bfloat16 products where ROUNDED_ROWS or more rows go through a layer at once and the weights are no
float32, and in the attention of MANY_QUERIES or more. So the prompts here are longer than that. The head is float32's
in both, and so is what is decoded: a run that is alone has one row.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import RESULTS, ROWS, SHARED, Sums
from byhand import LLM, SamplingParams
from byhand.cache.kv_cache import PAGE_SIZE, Batch, KVCache
from byhand.kernels.cpu import MANY_ROWS, ROUNDED_ROWS
from byhand.models import Model
from byhand.verify import DEFAULT_PROMPTS
from training.data import load_corpora

WAYS = ("exact", "fast")
# Tokens of each document, and of what stands before the suite's prompts.
LENGTH = 512
BEFORE = (96, 192, 448)
NEW = 40
# Rows whose logits are made at once: fewer than are rounded.
HEAD_ROWS = ROUNDED_ROWS - 1


@torch.no_grad()
def logits_of(model: Model, ids: Sequence[int]) -> Iterator[torch.Tensor]:
    """(HEAD_ROWS, vocab) float32 at a time: the scores of what follows every place."""
    pages = tuple(range(-(-len(ids) // PAGE_SIZE)))
    cache = KVCache(model.layer_specs, len(pages))
    for start in range(0, len(ids), ROWS):
        end = min(start + ROWS, len(ids))
        place = torch.arange(start, end)
        slots, tables = (place,) * len(cache.groups), ((pages,),) * len(cache.groups)
        batch = Batch(torch.tensor(ids[start:end]), place, slots, (0, end - start), (end,), tables)
        hidden = model.forward(batch, cache)
        yield from (model.logits(rows) for rows in hidden.split(HEAD_ROWS))


@dataclass
class Places:
    """Both ways over the same texts: Sums of what they say, and the largest difference of a logit."""

    sums: Sums = field(default_factory=Sums)
    largest: float = 0.0
    margins: list[float] = field(default_factory=list)  # of "exact", where "fast" has another best

    def add(self, models: dict[str, Model], ids: Sequence[int]) -> None:
        """Read one document both ways."""
        following = torch.tensor([*ids[1:], 0]).split(HEAD_ROWS)
        for exact, fast, then in zip(*(logits_of(models[way], ids) for way in WAYS), following, strict=True):
            self.sums.add(exact.log_softmax(-1), fast.log_softmax(-1), then)
            self.largest = max(self.largest, (exact - fast).abs().max().item())
            best = exact.topk(2).values
            other = exact.argmax(-1) != fast.argmax(-1)
            self.margins += (best[:, 0] - best[:, 1])[other].tolist()

    def to_json(self) -> dict[str, float]:
        """Per thousand tokens, how many best ones differ; KL in nats a token; the largest difference of a logit."""
        tokens = self.sums.tokens
        return {
            "tokens": tokens,
            "differ_per_1000": round(1000 * (tokens - self.sums.same_best) / tokens, 2),
            "kl": float(f"{self.sums.divergence / tokens:.3g}"),
            "largest_logit_difference": float(f"{self.largest:.3g}"),
            "largest_margin_of_a_difference": float(f"{max(self.margins, default=0.0):.3g}"),
        }


def greedy_runs(llms: dict[str, LLM], prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Greedy runs from long prompts, both ways: how many part, and after how many tokens in common."""
    params = SamplingParams(temperature=0.0, max_tokens=NEW)
    common, parted = 0, 0
    for prompt in prompts:
        exact, fast = (llms[way].generate(list(prompt), params).ids for way in WAYS)
        same = sum(1 for _ in takewhile(lambda pair: eq(*pair), zip(exact, fast, strict=False)))
        common += same
        parted += exact != fast
    return {
        "runs": len(prompts),
        "parted": parted,
        "tokens_in_common": common,
        "parted_per_1000": round(1000 * parted / (common + parted), 2),
    }


# Texts.


def documents(llm: LLM, texts: Sequence[str], tokens: int) -> Iterator[list[int]]:
    """Held-out texts as ids, each cut to LENGTH, until so many tokens are given."""
    for text in texts:
        ids = llm.tokenizer.encode(text)[:LENGTH]
        if tokens <= 0:
            return
        if len(ids) >= 2 * MANY_ROWS:
            tokens -= len(ids)
            yield ids


def long_prompts(llm: LLM, texts: Sequence[str]) -> list[list[int]]:
    """The suite's prompts, each after the beginning of a held-out text: longer than MANY_ROWS."""
    assert min(BEFORE) > MANY_ROWS
    chosen = random.Random(0).sample([text for text in texts if len(text) > 400], len(DEFAULT_PROMPTS))
    return [
        llm.tokenizer.encode(text)[:length] + llm.tokenizer.encode_continuation("\n" + prompt)
        for length in BEFORE
        for text, prompt in zip(chosen, DEFAULT_PROMPTS, strict=True)
    ]


# What comes of it.


def measure(model: Path | None, held_out: dict[str, list[str]], tokens: int) -> dict[str, Any]:
    """One model: every kind of text, and greedy runs."""
    llms = {way: LLM(model, prefill=way, cache_tokens=2 * LENGTH) for way in WAYS}
    models = {way: llm.model for way, llm in llms.items()}
    texts: dict[str, Any] = {}
    for kind, found in held_out.items():
        places = Places()
        for ids in documents(llms["exact"], found, tokens):
            places.add(models, ids)
        texts[kind] = places.to_json()
    runs = greedy_runs(llms, long_prompts(llms["exact"], held_out["stories"]))
    identity = llms["exact"].identity
    return {"name": identity.name, "digest": identity.digest, "dtype": identity.dtype, "texts": texts, "greedy": runs}


def print_table(table: dict[str, Any]) -> None:
    """As Markdown."""
    print(f"\n{table['name']}, {table['dtype']} weights\n")
    print("| text | tokens | other best token, in 1,000 | its margin at most | KL, nats a token | largest Δ logit |")
    print("|---|---|---|---|---|---|")
    for kind, found in table["texts"].items():
        numbers = (found[name] for name in ("largest_margin_of_a_difference", "kl", "largest_logit_difference"))
        print(f"| {kind} | {found['tokens']:,} | {found['differ_per_1000']} | {' | '.join(map(str, numbers))} |")
    greedy = table["greedy"]
    parts = f"{greedy['parted']} of {greedy['runs']} greedy runs of {NEW} tokens part"
    print(f"\n{parts}, {greedy['parted_per_1000']} in 1,000 tokens up to there")


def main() -> None:
    """Measure, print, and put it beside the other figures of quality."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefill", description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", type=Path, default=SHARED / "data" / "corpora", help="where the texts lie")
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], help="another model, and another")
    parser.add_argument("--tokens", type=int, default=8000, help="of each kind of text")
    arguments = parser.parse_args()
    held_out = load_corpora(arguments.corpora).held_out
    tables = [measure(model, held_out, arguments.tokens) for model in (None, *arguments.checkpoint)]
    for table in tables:
        print_table(table)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    results["prefill"] = {
        "date": date.today().isoformat(),
        "command": "python -m benchmarks.prefill",
        "models": tables,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
