"""A GeGLU model beside its SwiGLU twin: the same weights, the activation function of the gate alone differs.

    python -m benchmarks.gates                      # the 135M shape in bfloat16
    python -m benchmarks.gates --quantize int8 --rounds 20

Both are open in one process and take turns; each figure is the median of the rounds' ratios, with its interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from byhand import LLM, SamplingParams
from byhand.bench.checkpoints import write
from byhand.bench.ratios import paired_ratio
from byhand.bench.shapes import SHAPES, shape_config

NEW, LONG = 32, 512
NUMBERS = count(2)


def prompt_of(length: int) -> list[int]:
    """Ids that no earlier prompt began with."""
    first = next(NUMBERS)
    return [10 + (first + 7 * at) % 40_000 for at in range(length)]


def decode(llm: LLM) -> float:
    """Seconds a token."""
    run = llm.start(prompt_of(64), SamplingParams(ignore_eos=True))
    run.step()
    begun = perf_counter()
    for _ in range(NEW):
        run.step()
    seconds = (perf_counter() - begun) / NEW
    run.stop()
    return seconds


def prompt(llm: LLM) -> float:
    """Seconds until the first token of a long prompt."""
    ids = prompt_of(LONG)
    begun = perf_counter()
    llm.generate(ids, SamplingParams(max_tokens=1, ignore_eos=True))
    return perf_counter() - begun


def compare(measure: Callable[[LLM], float], gelu: LLM, silu: LLM, rounds: int) -> str:
    """The ratio of the two, who begins in turn."""
    times: dict[int, list[float]] = {0: [], 1: []}
    for number in range(2 * rounds + 4):
        which = (number + number // 2) % 2
        times[which].append(measure((gelu, silu)[which]))
    ratio = paired_ratio(times[0][2:], times[1][2:])
    return f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


def main() -> None:
    """Print two lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gated = [name for name, config in SHAPES.items() if "hidden_act" in config]
    parser.add_argument("--shape", choices=gated, default="smol-135m")
    parser.add_argument("--quantize", choices=["int8", "int4"])
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    models: list[LLM] = []
    with TemporaryDirectory(prefix="byhand-gates-") as place:
        for name in ("gelu_pytorch_tanh", "silu"):
            folder = Path(place) / name
            folder.mkdir()
            write({**shape_config(given.shape), "hidden_act": name}, "bfloat16", folder)
            models.append(LLM(folder, quantize=given.quantize, cache_tokens=4096))
        for measure in (decode, prompt):
            ratio = compare(measure, models[0], models[1], given.rounds)
            print(f"{measure.__name__}: GeGLU takes {ratio} of SwiGLU's time")


if __name__ == "__main__":
    main()
