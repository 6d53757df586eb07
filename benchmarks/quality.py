"""What quantisation costs in quality: perplexity and KL divergence against float32, on text the model never read.

    python -m benchmarks.quality            # the table, and benchmarks/results/quality.json
    python -m benchmarks.quality --publish  # also byhand/assets/quality.json, which `byhand models` tells from

Beside the forms that byhand has stand others that it might have had; they are tried with the same kernels, on float32
matrices that hold the numbers those forms would give.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from byhand.cache.kv_cache import PAGE_SIZE, Batch, KVCache
from byhand.checkpoint import Checkpoint, open_checkpoint
from byhand.formats import Weight
from byhand.kernels import backend, reference
from byhand.models import Model, architecture_of, read_config
from byhand.quantize import quantize
from byhand.text import Tokenizer
from byhand.weights import Weights
from training.data import clean, is_held_out, load_corpora, read_corpus

Shrink = Callable[[Weight], Weight]

SHARED = Path(__file__).parents[2] / "shared"
RESULTS = Path(__file__).parent / "results" / "quality.json"
PUBLISHED = Path(__file__).parents[1] / "byhand" / "assets" / "quality.json"

# Tokens of each kind of text.
TOKENS = 12_000
ROWS = 512


# Forms that are only tried here: functions from groups (..., group) to the numbers that would be read instead.


def _rounded(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


def symmetric_int4(groups: torch.Tensor, shares: Sequence[float] = (1.0,)) -> torch.Tensor:
    """Codes -8 to 7 and one scale, set by the largest number (llama.cpp's Q4_0); of several shares the best is kept."""
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best, least = torch.zeros_like(groups), torch.full_like(largest, math.inf)
    for share in shares:
        scale = _rounded(largest * share / -8)
        codes = (groups / torch.where(scale == 0, 1.0, scale)).round().clamp(-8, 7)
        # The scale that fits these codes best.
        power = codes.square().sum(-1, keepdim=True)
        fitted = _rounded((codes * groups).sum(-1, keepdim=True) / torch.where(power == 0, 1.0, power))
        numbers = codes * (scale if len(shares) == 1 else fitted)
        error = (groups - numbers).square().sum(-1, keepdim=True)
        best = torch.where(error < least, numbers, best)
        least = torch.minimum(error, least)
    return best


def ends_int4(groups: torch.Tensor) -> torch.Tensor:
    """Codes 0 to 15 and a scale and an offset that reach from the least number to the largest: llama.cpp's Q4_1."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale, offset = _rounded((high - low) / 15), _rounded(low)
    return ((groups - offset) / torch.where(scale == 0, 1.0, scale)).round().clamp(0, 15) * scale + offset


def plain_int8(groups: torch.Tensor) -> torch.Tensor:
    """Codes -127 to 127 and one scale."""
    scale = _rounded(groups.abs().amax(-1, keepdim=True) / 127)
    return (groups / torch.where(scale == 0, 1.0, scale)).round().clamp(-127, 127) * scale


def tried(function: Callable[[torch.Tensor], torch.Tensor], group: int | None) -> Shrink:
    """A form of ours to be: `group` numbers share a scale, or a whole row where it is None."""

    def shrink(weight: Weight) -> Weight:
        numbers = reference.rows_of(weight, slice(None))
        size = group or numbers.shape[1]
        padded = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % size))
        found = function(padded.view(len(padded), -1, size)).flatten(1)[:, : numbers.shape[1]]
        return Weight.of(found.contiguous())

    return shrink


def own(form: str) -> Shrink:
    """A form that byhand has."""
    return lambda weight: quantize(weight, form)


def except_large(shrink: Shrink, other: Shrink, rows: int) -> Shrink:
    """Another form for matrices of so many rows: the embedding and the head."""
    return lambda weight: (other if weight.shape[0] == rows else shrink)(weight)


@dataclass(frozen=True)
class Variant:
    """One way to hold the model. `bits` a weight; `is_ours`: LLM(quantize=..., cache_dtype=...) can do it."""

    name: str
    bits: float
    shrink: Shrink | None = None
    cache: torch.dtype = torch.float32
    is_ours: bool = False


def variants(vocab_size: int) -> list[Variant]:
    """All that is compared; float32 is the measure, and so no entry."""
    bf16 = torch.bfloat16
    best = tuple(step / 20 for step in range(14, 23))
    return [
        Variant("float32, cache in bfloat16", 32, cache=bf16, is_ours=True),
        Variant("int8", 8.5, own("int8"), is_ours=True),
        Variant("int8, cache in bfloat16", 8.5, own("int8"), bf16, is_ours=True),
        Variant("int8, one scale a row", 8.0, tried(plain_int8, None)),
        Variant("int4", 5.0, own("int4"), is_ours=True),
        Variant("int4, cache in bfloat16", 5.0, own("int4"), bf16, is_ours=True),
        Variant("int4, embedding and head in int8", 0.0, except_large(own("int4"), own("int8"), vocab_size)),
        Variant("int4, scale and offset from the ends", 5.0, tried(ends_int4, 32)),
        Variant("int4, symmetric", 4.5, tried(symmetric_int4, 32)),
        Variant("int4, symmetric, best of nine scales", 4.5, tried(lambda groups: symmetric_int4(groups, best), 32)),
        Variant("int4, symmetric, best of nine, groups of 16", 5.0, tried(lambda g: symmetric_int4(g, best), 16)),
        Variant("int4, scale and offset from the ends, groups of 64", 4.5, tried(ends_int4, 64)),
    ]


# Models and what they say of a text.


def build(checkpoint: Checkpoint, shrink: Shrink | None) -> Model:
    """The model in float32, or with its matrices shrunk."""
    architecture = architecture_of(checkpoint)
    weights = Weights.open(checkpoint, "float32", shrink=shrink)
    return architecture.Model(read_config(checkpoint), weights, backend("reference"))


@torch.no_grad()
def logprobs(model: Model, ids: Sequence[int], cache_dtype: torch.dtype) -> torch.Tensor:
    """(len(ids) - 1, vocab): the log-probabilities of what comes next, read in passes of ROWS."""
    pages = tuple(range(-(-len(ids) // PAGE_SIZE)))
    cache = KVCache(model.layer_specs, len(pages), dtype=cache_dtype)
    rows = []
    for start in range(0, len(ids), ROWS):
        end = min(start + ROWS, len(ids))
        place = torch.arange(start, end)
        slots, tables = (place,) * len(cache.groups), ((pages,),) * len(cache.groups)
        batch = Batch(torch.tensor(ids[start:end]), place, slots, (0, end - start), (end,), tables)
        rows.append(model.logits(model.forward(batch, cache)).log_softmax(-1))
    return torch.cat(rows)[:-1]


@dataclass
class Sums:
    """What one variant said of one kind of text, summed up over tokens."""

    tokens: int = 0
    loss: float = 0.0
    divergence: float = 0.0
    same_best: int = 0

    def add(self, truth: torch.Tensor, said: torch.Tensor, following: torch.Tensor) -> None:
        """One document: float32's log-probabilities, the variant's, and the tokens that came."""
        self.tokens += len(following)
        self.loss -= said.gather(1, following[:, None]).sum().item()
        self.divergence += (truth.exp() * (truth - said)).sum().item()
        self.same_best += int((truth.argmax(-1) == said.argmax(-1)).sum())

    def figures(self) -> dict[str, float]:
        """Perplexity, KL(float32 || variant) in nats a token, and how often the best candidate is the same one."""
        return {
            "perplexity": round(math.exp(self.loss / self.tokens), 4),
            "kl": float(f"{self.divergence / self.tokens:.3g}"),
            "same_best": round(self.same_best / self.tokens, 4),
        }


@dataclass
class Table:
    """One model's figures: by kind of text, by variant."""

    name: str
    digest: str
    sums: dict[str, dict[str, Sums]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it is kept."""
        texts = {
            kind: {
                "tokens": next(iter(rows.values())).tokens,
                "variants": {name: sums.figures() for name, sums in rows.items()},
            }
            for kind, rows in self.sums.items()
        }
        return {"name": self.name, "digest": self.digest, "texts": texts}


def measure(checkpoint: Checkpoint, texts: dict[str, Iterator[list[int]]], vocab_size: int) -> Table:
    """Read every text with every variant."""
    table = Table(checkpoint.identity.name, checkpoint.identity.digest)
    truth_model = build(checkpoint, None)
    compared = variants(vocab_size)
    models = [build(checkpoint, variant.shrink) for variant in compared]
    for kind, documents in texts.items():
        rows = table.sums[kind] = {name: Sums() for name in ["float32", *(variant.name for variant in compared)]}
        for ids in documents:
            following = torch.tensor(ids[1:])
            truth = logprobs(truth_model, ids, torch.float32)
            rows["float32"].add(truth, truth, following)
            for variant, model in zip(compared, models, strict=True):
                rows[variant.name].add(truth, logprobs(model, ids, variant.cache), following)
    return table


# Texts.


def documents(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> Iterator[list[int]]:
    """Documents as ids, each cut to the context, until TOKENS are read."""
    count = 0
    for text in texts:
        ids = tokenizer.encode(text)[:longest]
        if count >= TOKENS:
            return
        count += len(ids)
        yield ids


def measure_embedded(corpora: Path) -> Table:
    """The embedded model on what was held out of its training."""
    checkpoint = open_checkpoint()
    tokenizer = Tokenizer.open(checkpoint.folder)
    held_out = load_corpora(corpora).held_out
    longest = checkpoint.config["max_position_embeddings"]
    texts = {kind: documents(tokenizer, found, longest) for kind, found in held_out.items()}
    return measure(checkpoint, texts, checkpoint.config["vocab_size"])


def measure_stories(folder: Path, corpora: Path) -> Table:
    """stories260K on TinyStories; which of these stories it was trained on is not known, and KL does not ask."""
    checkpoint = open_checkpoint(folder)
    tokenizer = Tokenizer.open(folder)
    stories = [text for index, text in enumerate(read_corpus(corpora / "tinystories_head.txt")) if is_held_out(index)]
    texts = {"stories": documents(tokenizer, list(map(clean, stories)), checkpoint.config["max_position_embeddings"])}
    return measure(checkpoint, texts, checkpoint.config["vocab_size"])


# What comes of it.


def print_table(table: Table) -> None:
    """As Markdown."""
    for kind, rows in table.sums.items():
        print(f"\n{table.name}, {kind}, {next(iter(rows.values())).tokens:,} tokens\n")
        print("| form | bits a weight | perplexity | KL, nats a token | same best token |\n|---|---|---|---|---|")
        bits = {variant.name: variant.bits for variant in variants(0)} | {"float32": 32}
        for name, sums in rows.items():
            found = sums.figures()
            wide = f"{bits[name]:g}" if bits[name] else "between"
            print(f"| {name} | {wide} | {found['perplexity']:.3f} | {found['kl']:.2g} | {found['same_best']:.2%} |")


def published(results: dict[str, Any]) -> dict[str, Any]:
    """Of all figures those that `byhand models` tells: the embedded model's, of the forms that byhand has."""
    ours = ["float32", *(variant.name for variant in variants(0) if variant.is_ours)]
    table = results["models"][0]
    texts = {
        kind: {**found, "variants": {name: found["variants"][name] for name in ours}}
        for kind, found in table["texts"].items()
    }
    return {"date": results["date"], "command": results["command"], "models": [{**table, "texts": texts}]}


def _save(value: Any, file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", type=Path, default=SHARED / "data" / "corpora", help="where the texts lie")
    parser.add_argument("--stories", type=Path, default=SHARED / "models" / "stories260K", help="the second model")
    parser.add_argument("--publish", action="store_true", help="also write what `byhand models` tells")
    arguments = parser.parse_args()
    tables = [measure_embedded(arguments.corpora)]
    if arguments.stories.is_dir():
        tables.append(measure_stories(arguments.stories, arguments.corpora))
    for table in tables:
        print_table(table)
    results = {
        "date": date.today().isoformat(),
        "command": "python -m benchmarks.quality",
        "models": [table.to_json() for table in tables],
    }
    # What prefill.py has measured stands in the same file.
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    _save({**before, **results}, RESULTS)
    if arguments.publish:
        _save(published(results), PUBLISHED)


if __name__ == "__main__":
    main()
