"""Ids and bits of every family, weight format and kind of kernels: one line of JSON each."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import binding
from transformers import AutoConfig, AutoModelForCausalLM

from byhand import LLM, SamplingParams
from byhand.types import Step
from tests.alone import AVX2, AVX512, run
from tests.checkpoints import CONFIGS
from tests.conftest import write_tokenizer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "reference": ("reference", {}),
    "avx2": ("cpu", AVX2),
    "avx512": ("cpu", AVX512),
    "host": ("cpu", {}),
}
FORMATS: dict[str, dict[str, str]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
}
SAMPLED = SamplingParams(temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.1, max_tokens=8, seed=7, n=2)
GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)


def made_with() -> dict[str, str]:
    """What the bits depend on beside byhand: versions, and the processor."""
    names = ("torch", "numpy", "numba", "llvmlite", "transformers")
    features = ",".join(name for name, there in sorted(binding.get_host_cpu_features().items()) if there)
    processor = blake2b(features.encode(), digest_size=8).hexdigest()
    return {**{name: version(name).partition("+")[0] for name in names}, "processor": processor}


def checkpoint(folder: Path, config: dict[str, Any]) -> Path:
    """A model whose weights are numpy's, the same for ever: wide, so that its sequences wander."""
    folder.mkdir()
    config = {**config, "vocab_size": 384, "bos_token_id": 0, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    dice = np.random.Generator(np.random.Philox(14))
    for name, parameter in model.named_parameters():
        numbers = 0.3 * dice.standard_normal(tuple(parameter.shape))
        numbers = 1 + numbers / 3 if parameter.dim() == 1 and name.endswith("weight") else numbers
        parameter.data = torch.from_numpy(numbers.astype(np.float32))
    model.tie_weights()
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def digest(*arrays: Any) -> str:
    """Of the bits of float arrays."""
    found = blake2b(digest_size=8)
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def numbers(steps: list[Step]) -> str:
    """Of the bits of what steps say."""
    told = [(step.logprob, step.entropy, step.margin, step.tail_mass) for step in steps]
    return digest(np.array(told, np.float64))


def case(llm: LLM) -> dict[str, Any]:
    """Prompts of several lengths together, prefixes found again, a fork, a rewind, an insert; all logits."""
    size = llm.vocab_size
    prompts = [[(7 * i * i + 3 * i + seed) % (size - 3) + 3 for i in range(n)] for seed, n in enumerate((1, 17, 70))]
    together = llm.generate(prompts, GREEDY)
    sampled = [each for prompt in prompts[:2] for each in llm.generate(prompt, SAMPLED)]
    run = llm.start(prompts[1], GREEDY.replace(max_tokens=60))
    for _ in range(4):
        run.step()
    twin = run.fork(seed=5)
    run.rewind(3)
    inserted = run.insert(prompts[2][:20])
    last = run.step()
    return {
        "ids": [each.ids for each in [*together, *sampled]] + [run.ids, [twin.step().token.id for _ in range(4)]],
        "steps": [numbers(each.steps) for each in [*together, *sampled]] + [numbers([*inserted, last])],
        "logits": digest(*(row.numpy() for row in (llm.logits(prompts[1]), llm.logits(prompts[2])))),
    }


def lines(kernels: str, models: list[str]) -> Iterator[str]:
    """The header, and a line for each case."""
    yield json.dumps(made_with())
    with tempfile.TemporaryDirectory() as folder:
        for (family, variant), config in CONFIGS.items():
            if models and f"{family} {variant}" not in models:
                continue
            path = checkpoint(Path(folder) / f"{family}-{variant}", config)
            for name, options in FORMATS.items():
                made = case(LLM(path, kernels=kernels, **options))  # type: ignore[arg-type]
                yield json.dumps({"case": f"{family} {variant} {name}", **made})


def made_now(kind: str, models: list[str]) -> list[str]:
    """The lines of a kind of kernels, from a process of its own."""
    kernels, held_to = KINDS[kind]
    done = run(["-m", "tests.frozen.hashes", kernels, *models], ROOT, **held_to)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def path_of(kind: str) -> Path:
    return HERE / "hashes" / f"{kind}.jsonl"


def differences(kind: str, models: list[str]) -> list[str]:
    """What is another than it was, case by case."""
    then = {line["case"]: line for line in map(json.loads, path_of(kind).read_text().splitlines()[1:])}
    found = []
    for now in map(json.loads, made_now(kind, models)[1:]):
        before = then.pop(now["case"])
        found += [f"{kind}: {now['case']}: {name}" for name in now if now[name] != before[name]]
    return found + ([] if models else [f"{kind}: {name} is gone" for name in then])


def other_machine(kind: str) -> str | None:
    """Why bits cannot be compared here."""
    then, now = json.loads(path_of(kind).read_text().partition("\n")[0]), made_with()
    changed = [name for name in now if now[name] != then.get(name)]
    return f"the bits were made with another {', '.join(changed)}" if changed else None


if __name__ == "__main__":
    for line in lines(sys.argv[1], sys.argv[2:]):
        print(line, flush=True)
