"""Tiny checkpoints on disk, made with transformers, and the smallest loop that runs a model over pages."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, logging

from byhand.cache.kv_cache import PAGE_SIZE, Batch, KVCache
from byhand.checkpoint import open_checkpoint
from byhand.kernels import backend
from byhand.models import Model, build
from tests.tiny_configs import TINY, VARIANTS

logging.set_verbosity_error()
logging.disable_progress_bar()

# The backend of models that are opened without a word about it; `pytest --kernels` sets it.
KERNELS: dict[str, str] = {}

SHARED = Path(__file__).parents[2] / "shared"

# Every family's TINY and its variants: (family, variant) → config.json.
CONFIGS: dict[tuple[str, str], dict[str, Any]] = {
    (family, name): {**config, **change}
    for family, config in TINY.items()
    for name, change in {"tiny": {}, **VARIANTS[family]}.items()
}


def _randomize(model: PreTrainedModel, std: float) -> None:
    # The usual std of 0.02 gives nearly equal logits; wide weights give sequences that wander. Narrow embeddings keep
    # tied heads from answering every token with itself, and narrow biases from drowning the text. After a relu all
    # numbers are positive: rows that sum to nothing keep their mean from drowning it too.
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape) * std
        if parameter.dim() == 1:
            parameter.data = noise + 1 if name.endswith("weight") else noise / 5
        elif "embed_tokens" in name or "wte" in name:
            parameter.data = noise / 3
        elif "fc2" in name:
            parameter.data = noise - noise.mean(1, keepdim=True)
        else:
            parameter.data = noise


def make_checkpoint(
    folder: Path, config: dict[str, Any], *, seed: int = 0, std: float = 0.3, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a random model of this config.json, which is written word for word, old names and all."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    _randomize(model, std)
    model.tie_weights()
    model.to(dtype).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tiny(folder: Path, family: str = "llama", variant: str = "tiny", **options: Any) -> Path:
    """Write a random model of one of CONFIGS."""
    return make_checkpoint(folder, CONFIGS[family, variant], **options)


def rewrite_tensors(folder: Path, change: Any) -> None:
    """Replace model.safetensors by change(its tensors)."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def to_pickle(folder: Path, change: Any = dict, **options: Any) -> Path:
    """Replace model.safetensors by a pickle of change(its tensors)."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(change(tensors), folder / "pytorch_model.bin", **options)
    return folder


def rewrite_config(folder: Path, **changes: Any) -> None:
    """Change fields of config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def open_model(folder: Path, dtype: str = "auto", kernels: str | None = None) -> Model:
    """Build byhand's model of a folder."""
    return build(open_checkpoint(folder), backend(kernels or KERNELS.get("tests", "reference")), dtype)


def judge(folder: Path) -> PreTrainedModel:
    """Build transformers' model of a folder: float32, eager attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval()


@torch.no_grad()
def judge_logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """transformers' logits at every position, (len(ids), vocab), with an attention mask of ones."""
    input_ids = torch.tensor([list(ids)])
    logits: torch.Tensor = model(input_ids, attention_mask=torch.ones_like(input_ids)).logits[0]
    return logits


@torch.no_grad()
def judge_greedy(model: PreTrainedModel, ids: Sequence[int], count: int) -> list[int]:
    """The ids that transformers' generate adds, with nothing that ends it early."""
    input_ids = torch.tensor([list(ids)])
    out = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    new: list[int] = out[0, len(ids) :].tolist()
    return new


@dataclass
class PagedRun:
    """Ids, how many are computed, and the pages they lie in, of each group of layers."""

    ids: list[int]
    computed: int = 0
    tables: list[list[int]] = field(default_factory=list)


class KVCacheManager:
    """Runs ragged passes over pages that are handed out in a shuffled order, to each group of layers in another."""

    def __init__(self, model: Model, num_pages: int = 256, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self.cache = KVCache(model.layer_specs, num_pages, device=model.device, dtype=dtype)
        for tensor in (*self.cache.keys, *self.cache.values):
            tensor.fill_(torch.nan)  # whoever reads a slot that was never written shall know it
        dice = random.Random(seed)
        self.free = [dice.sample(range(num_pages), num_pages) for _ in self.cache.groups]

    def batch(self, chunks: Sequence[tuple[PagedRun, int]]) -> Batch:
        """Lay out the next `end - computed` tokens of each run."""
        device = self.model.device
        rows = [(run, position) for run, end in chunks for position in range(run.computed, end)]
        for run, end in chunks:
            run.tables = run.tables or [[] for _ in self.free]
            for table, free in zip(run.tables, self.free, strict=True):
                table += [free.pop() for _ in range(len(table), -(-end // PAGE_SIZE))]
        slots = [
            [run.tables[group][position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE for run, position in rows]
            for group in range(len(self.free))
        ]
        return Batch(
            input_ids=torch.tensor([run.ids[position] for run, position in rows], device=device),
            position_ids=torch.tensor([position for _, position in rows], device=device),
            slot_mappings=tuple(torch.tensor(of_group, device=device) for of_group in slots),
            query_starts=tuple(accumulate((end - run.computed for run, end in chunks), initial=0)),
            context_lens=tuple(end for _, end in chunks),
            page_tables=tuple(tuple(tuple(run.tables[group]) for run, _ in chunks) for group in range(len(self.free))),
        )

    def step(self, chunks: Sequence[tuple[PagedRun, int]]) -> list[torch.Tensor]:
        """One pass: each run's logits (its rows, vocab)."""
        batch = self.batch(chunks)
        logits = self.model.logits(self.model.forward(batch, self.cache))
        for run, end in chunks:
            run.computed = end
        return [logits[start:stop] for start, stop in zip(batch.query_starts, batch.query_starts[1:], strict=False)]


def logits_of(model: Model, ids: Sequence[int], cuts: Sequence[int] = (), seed: int = 0) -> torch.Tensor:
    """byhand's logits at every position, the prompt read in chunks that end at the cuts."""
    manager, run = KVCacheManager(model, seed=seed), PagedRun(list(ids))
    return torch.cat([manager.step([(run, end)])[0] for end in (*cuts, len(ids))])


def greedy(
    model: Model, prompts: Sequence[Sequence[int]], count: int, dtype: torch.dtype = torch.float32
) -> list[list[int]]:
    """The ids that byhand adds to each prompt, all prompts in one ragged batch."""
    manager, runs = KVCacheManager(model, num_pages=1024, dtype=dtype), [PagedRun(list(prompt)) for prompt in prompts]
    for _ in range(count):
        rows = manager.step([(run, len(run.ids)) for run in runs])
        for run, logits in zip(runs, rows, strict=True):
            run.ids.append(int(logits[-1].argmax()))
    return [run.ids[len(prompt) :] for run, prompt in zip(runs, prompts, strict=True)]


def random_prompt(vocab_size: int, length: int, seed: int) -> list[int]:
    """Random token ids."""
    return random.Random(seed).choices(range(vocab_size), k=length)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max|Δ| / max|reference|."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
