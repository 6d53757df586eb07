"""byhand on a GPU beside transformers on the same one: seconds a token while decoding, and for a prompt.

    python -m benchmarks.gpu                     # the 135M shape
    python -m benchmarks.gpu --shape llama-1b --rounds 7

Random weights in bfloat16, greedy, one run. byhand takes its reference kernels there, which compute in float32;
transformers is asked in float32 and in bfloat16. The engines take turns, and each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from byhand import LLM, SamplingParams
from byhand.bench.checkpoints import write
from byhand.bench.shapes import SHAPES, shape_config

NEW = 64
SHORT, LONG = 16, 512

# How long it takes to read a prompt of so many tokens and make so many.
Engine = Callable[[int, int], float]


def prompt_of(length: int) -> list[int]:
    """The same ids for every engine."""
    return [10 + 7 * place % 900 for place in range(length)]


def timed(work: Callable[[], object]) -> float:
    """Seconds until the GPU has done it."""
    torch.cuda.synchronize()
    begun = perf_counter()
    work()
    torch.cuda.synchronize()
    return perf_counter() - begun


def byhand_engine(folder: Path) -> Engine:
    """No prompt is known from an earlier round: the first id says which round it is."""
    llm = LLM(folder, device="cuda", cache_tokens=4096)
    rounds = iter(range(1000, 9000))

    def run(length: int, new: int) -> float:
        prompt = [next(rounds), *prompt_of(length - 1)]
        params = SamplingParams(max_tokens=new, ignore_eos=True)
        return timed(lambda: llm.generate(prompt, params))

    return run


def transformers_engine(folder: Path, dtype: torch.dtype) -> Engine:
    """`generate`, as the judge calls it."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = model.cuda().eval()

    def run(length: int, new: int) -> float:
        ids = torch.tensor([prompt_of(length)], device="cuda")
        asked = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 1}
        return timed(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **asked))

    return run


def measure(run: Engine) -> tuple[float, float]:
    """Milliseconds a decoded token, and of a long prompt with its first token."""
    decode = (run(SHORT, NEW + 1) - run(SHORT, 1)) / NEW
    return 1000 * decode, 1000 * run(LONG, 1)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smol-135m")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "there is no GPU here\n")
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(shape_config(asked.shape), "bfloat16", folder)
        engines = {
            "byhand": byhand_engine(folder),
            "transformers float32": transformers_engine(folder, torch.float32),
            "transformers bfloat16": transformers_engine(folder, torch.bfloat16),
        }
        for run in engines.values():
            measure(run)  # warm
        rounds = [{name: measure(run) for name, run in engines.items()} for _ in range(asked.rounds)]
    print(f"{asked.shape} on {torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"| engine | decode, ms a token | prompt of {LONG}, ms |\n|---|---:|---:|")
    for engine in engines:
        decode, prompt = (median(one[engine][column] for one in rounds) for column in range(2))
        print(f"| {engine} | {decode:.2f} | {prompt:.1f} |")


if __name__ == "__main__":
    main()
