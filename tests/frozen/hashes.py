"""Ids and bits of every family, format and processor: `python -m tests.frozen.hashes KIND` prints those of one kind.

`ids.jsonl` holds the ids of each case as far as no choice was thin; they hold for every kind, on every machine. A
kind's own file holds digests of the bits of all logits and of all numbers of the Steps; they hold where its first line
does.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llvmlite import binding

from byhand import LLM
from byhand.types import Step
from tests.alone import AVX2, AVX512, run
from tests.checkpoints import CONFIGS
from tests.frozen.checkpoints import digest_of, write_checkpoint
from tests.frozen.comparing import HERE, Report, digest, other_versions, read_lines, versions, write_lines

FOLDER = HERE / "hashes"
FORMATS: dict[str, dict[str, str]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "bf16-cache": {"dtype": "bfloat16", "cache_dtype": "bfloat16"},
    "bf16-fast": {"dtype": "bfloat16", "prefill": "fast"},
}
# Products that round differ from processor to processor, and ids with them: of these the bits are all.
BITS_ALONE = ("bf16-fast",)
# Families that came after the freeze.
LATER = ("olmo2",)
CASES = [f"{family}/{variant}/{form}" for family, variant in CONFIGS if family not in LATER for form in FORMATS]
# Seventeen and the number of formats have no common divisor: the sample meets every family and every format.
SAMPLE = CASES[::17]
# Each kind, and what tells the kernels of it.
KINDS: dict[str, dict[str, str]] = {"reference": {}, "host": {}, "avx512": AVX512, "avx2": AVX2}
SCENES = ("greedy", "sampled", "reused", "steered")

# A choice that is thinner may fall otherwise on another processor.
THIN_MARGIN = 2e-3  # nats between the best token and the second
THIN_DRAW = 2e-4  # of the cumulative bar, from the die to the border of its token's share

PROMPTS = [[(29 * length + 37 * place + place * place) % 128 for place in range(length)] for length in (1, 17, 70)]
DICE = {"temperature": 0.9, "seed": 7}


def cannot_run(kind: str) -> str:
    """Why this processor cannot run a kind; empty where it can."""
    wanted = KINDS[kind].get("NUMBA_CPU_FEATURES", "").replace("+", "")
    there = binding.get_host_cpu_features()
    missing = [name for name in wanted.split(",") if name and not there.get(name)]
    return f"this processor cannot run {kind}: it has no {', '.join(missing)}" if missing else ""


# What is done with a model.


def greedy(llm: LLM) -> list[list[Step]]:
    """Three prompts at once."""
    return [done.steps for done in llm.generate(PROMPTS, max_tokens=8, ignore_eos=True)]


def sampled(llm: LLM) -> list[list[Step]]:
    """The same with dice, two continuations of each."""
    return [done.steps for done in llm.generate(PROMPTS, max_tokens=5, ignore_eos=True, n=2, **DICE)]  # type: ignore[arg-type]


def reused(llm: LLM) -> list[list[Step]]:
    """A prompt whose beginning lies in pages that are known, alone in its pass."""
    run = llm.start([*PROMPTS[2], 3, 1], ignore_eos=True)
    return [[run.step() for _ in range(3)]]


def steered(llm: LLM) -> list[list[Step]]:
    """Everything that can be done to a run, one after the other."""
    run = llm.start(PROMPTS[1], ignore_eos=True, **DICE)  # type: ignore[arg-type]
    steps = [run.step() for _ in range(4)]
    fork = run.fork(seed=11)
    steps += [one.step() for _ in range(3) for one in (run, fork)]
    run.rewind(4)
    steps += [run.step(), run.step(force=9), *run.insert([4, 5, 6]), run.step()]
    run.set(temperature=0.0)
    steps += [*run.edit(19, 2), run.step(), run.step()]
    run.edit(12, 8)
    steps += [run.step(), run.step(), fork.step()]
    return [steps]


# What is kept of it.


def is_thin(step: Step) -> bool:
    """Whether another processor might have chosen another token."""
    if step.forced:
        return False
    if step.draw is None:
        return step.margin < THIN_MARGIN
    return min(step.draw.u - step.draw.low, step.draw.high - step.draw.u) < THIN_DRAW


def firm(steps: Sequence[Step]) -> int:
    """How many steps stand before the first thin choice."""
    return next((place for place, step in enumerate(steps) if is_thin(step)), len(steps))


def bits_of(many: Sequence[Sequence[Step]]) -> str:
    """A digest of the numbers of all steps, to the last bit."""
    packed = (
        struct.pack("<i4d", step.token.id, step.logprob, step.entropy, step.margin, step.tail_mass)
        for steps in many
        for step in steps
    )
    return digest(b"".join(packed))


def shape_of(many: Sequence[Sequence[Step]]) -> str:
    """A digest of what was computed for each step, and what was there; no kernel has a say in it."""
    shapes = [
        [(x.position, x.phase, x.positions_computed, x.positions_reused, x.cache_pages) for x in steps]
        for steps in many
    ]
    return digest(json.dumps(shapes).encode())


@cache
def place() -> tempfile.TemporaryDirectory[str]:
    """Where the checkpoints of this process lie, until it ends."""
    return tempfile.TemporaryDirectory(prefix="byhand-frozen-")


def measure_case(case: str, kernels: str) -> dict[str, Any]:
    """One case: its weights, its ids, its bits."""
    family, variant, form = case.split("/")
    folder = write_checkpoint(Path(place().name), family, variant)
    with LLM(folder, device="cpu", kernels=kernels, threads=1, cache_tokens=1024, **FORMATS[form]) as llm:  # type: ignore[arg-type]
        rows = [llm.logits(prompt) for prompt in PROMPTS]
        scenes = {name: globals()[name](llm) for name in SCENES}
    return {
        "case": case,
        "weights": digest_of(folder),
        "ids": {name: [[step.token.id for step in steps] for steps in many] for name, many in scenes.items()},
        "firm": {name: [0 if form in BITS_ALONE else firm(steps) for steps in many] for name, many in scenes.items()},
        "shape": {name: shape_of(many) for name, many in scenes.items()},
        "bits": {
            "logits": digest(b"".join(row.numpy().astype("<f4").tobytes() for row in rows)),
            **{name: bits_of(many) for name, many in scenes.items()},
        },
    }


def measured_here(kind: str, cases: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The versions, then the cases, in this process."""
    torch.set_num_threads(1)
    yield versions()
    for case in cases:
        yield measure_case(case, "reference" if kind == "reference" else "cpu")


def measured(kind: str, cases: Sequence[str]) -> list[dict[str, Any]]:
    """The same, in a process of its own where the kernels must be told of another processor."""
    if not KINDS[kind]:
        return list(measured_here(kind, cases))
    done = run(["-m", "tests.frozen.hashes", kind, *cases], HERE.parents[1], OMP_NUM_THREADS="1", **KINDS[kind])
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


# Written and compared.


def frozen_ids(case: dict[str, Any]) -> dict[str, Any]:
    """What holds for every kind: a case's weights, its ids as text up to the first thin choice, its shapes."""
    kept = {
        name: [" ".join(map(str, ids[:count])) for ids, count in zip(many, case["firm"][name], strict=True)]
        for name, many in case["ids"].items()
    }
    return {"case": case["case"], "weights": case["weights"], **kept, "shape": case["shape"]}


def write() -> Iterator[str]:
    """Write all kinds that this processor can run; the ids are the reference's."""
    for kind in KINDS:
        if reason := cannot_run(kind):
            yield reason
            continue
        head, *lines = measured(kind, CASES)
        if kind == "reference":
            write_lines(FOLDER / "ids.jsonl", [frozen_ids(line) for line in lines])
        write_lines(FOLDER / f"{kind}.jsonl", [head, *({"case": line["case"], **line["bits"]} for line in lines)])
        yield f"hashes/{kind}.jsonl: {len(lines)} cases"


def check(kind: str, cases: Sequence[str] = CASES) -> Report:
    """Compare cases of a kind: ids always, bits where all versions are those of the file."""
    if reason := cannot_run(kind):
        return Report(left_out=[reason])
    ids = {line["case"]: line for line in read_lines(FOLDER / "ids.jsonl")}
    head, *lines = read_lines(FOLDER / f"{kind}.jsonl")
    bits = {line["case"]: line for line in lines}
    now_head, *now_lines = measured(kind, cases)
    report = Report()
    others = other_versions(head, now_head)
    if others:
        report.left_out.append(f"bits of {kind} were not compared: {others}")
    for now in now_lines:
        case = now["case"]
        if case not in ids or case not in bits:
            report.differences.append(f"{kind} {case}: not among the frozen")
            continue
        report.differences += _id_differences(kind, ids[case], now)
        if not others:
            report.differences += _bit_differences(kind, bits[case], now)
    gone = sorted(set(ids) - set(CASES))
    report.differences += [f"{kind} {case}: frozen, and no case any more" for case in gone]
    return report


def _id_differences(kind: str, then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    if then["weights"] != now["weights"]:
        yield f"{kind} {now['case']}: these are other weights ({now['weights']}, not {then['weights']})"
        return
    for scene, many in now["ids"].items():
        for number, (was, ids) in enumerate(zip(then[scene], many, strict=True)):
            text = " ".join(map(str, ids))
            if not f"{text} ".startswith(f"{was} " if was else ""):
                yield f"{kind} {now['case']}: the ids of {scene}[{number}] were {was}, are {text}"
    for scene, shape in now["shape"].items():
        if then["shape"][scene] != shape:
            yield f"{kind} {now['case']}: other positions were computed, reused or held in {scene}"


def _bit_differences(kind: str, then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name, bits in now["bits"].items():
        if then[name] != bits:
            yield f"{kind} {now['case']}: the bits of {name} were {then[name]}, are {bits}"


def main() -> None:
    """Print a kind's versions and cases, one a line."""
    kind, *cases = sys.argv[1:]
    for line in measured_here(kind, cases or CASES):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
