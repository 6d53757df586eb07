"""Other processors than this one, as far as it can run their code: the kernels' own tests hold there too."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest
from llvmlite import binding

from byhand.kernels.native import compiled, llvm
from tests.alone import AVX2, AVX512, LEAST, python, run

FEATURES = binding.get_host_cpu_features()
FORMATS = {"float32", "bfloat16", "float16", "int8", "int4"}
HAS_AVX512 = FEATURES.get("avx512f", False)
# Whoever has no AVX-512 is such a processor: the tests themselves are its own.
IS_OTHER = pytest.mark.skipif(
    not HAS_AVX512,
    reason="this processor has AVX2 only, and so has run the same tests already"
    if FEATURES.get("avx2")
    else "this processor has no AVX2",
)


@IS_OTHER
@pytest.mark.parametrize(
    ("files", "fewest"),
    [
        (["test_kernels.py"], 250),
        (["test_blocks.py", "test_compiled.py::test_what_is_prepared_is_what_a_first_run_calls"], 240),
    ],
    ids=["kernels", "blocks"],
)
def test_the_kernels_tests_hold_with_avx2_only(files: list[str], fewest: int) -> None:
    here = Path(__file__).parent
    done = run(
        ["-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", "not reference", *(str(here / file) for file in files)],
        here.parent,
        **AVX2,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    [passed] = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) >= fewest


PRODUCTS = """
import torch
from byhand.kernels.cpu import Cpu
from byhand.quantize import quantize
from byhand.kernels import reference
from byhand.formats import Weight, quantized_formats
from byhand.weights import DTYPES
import byhand.kernels.cpu.calls as page
page.SMALL = 0
kernels = Cpu(threads=2)
matrix = torch.randn(301, 100)
weights = [Weight.of(matrix.to(dtype)) for dtype in DTYPES.values()]
weights += [quantize(Weight.of(matrix), form) for form in quantized_formats()]
for weight in weights:
    numbers = reference.rows_of(weight, slice(None)).double()
    for rows in (1, 2, 7, 40):
        x = torch.randn(rows, 100)
        one = x.double() @ numbers.T
        both = kernels.linear(x, weight), kernels.gated(x, weight, weight)
        for ours, truth in zip(both, (one, one.sigmoid() * one**2)):
            assert (ours - truth).abs().max() <= 1e-5 * truth.abs().max(), (weight.format, rows)
print(*(weight.format for weight in weights))
"""

MODELS = """
import torch
from byhand import LLM
ids = list(range(300, 345))
for options in ({}, {"dtype": "float32"}, {"dtype": "float16"}, {"quantize": "int8"}, {"quantize": "int4"}):
    truth = LLM(kernels="reference", **options).logits(ids)
    llm = LLM(kernels="cpu", threads=2, **options)
    assert (llm.logits(ids) - truth).abs().max() <= 2e-5 * truth.abs().max(), options
    run = llm.start(ids[:38])
    steps = run.insert(ids[38:40]) + [run.step(force=token) for token in ids[40:]]
    for step, row in zip(steps, truth[37:]):
        assert abs(step.logprob - row.log_softmax(-1)[step.token.id].item()) < 1e-3, (options, step)
        assert step.rank == 1 + int((row > row[step.token.id]).sum()), (options, step)
    print(llm.model.dtype, end=" ")
"""


@IS_OTHER
def test_models_with_avx2_only() -> None:
    result = python(MODELS, **AVX2)
    assert set(result.stdout.split()) == FORMATS, result.stderr


@pytest.mark.skipif(not HAS_AVX512, reason="this processor has no AVX-512")
def test_products_with_avx512_but_no_more() -> None:
    result = python(PRODUCTS, **AVX512)
    assert set(result.stdout.split()) == FORMATS, result.stderr


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="this processor runs no x86")
def test_a_processor_with_the_least_there_is() -> None:
    code = "import torch; from byhand.kernels.cpu import Cpu; x = torch.ones(2, 20); print(Cpu().relu(x).sum().item())"
    result = python(code, **LEAST)
    assert result.stdout.strip() == "40.0", result.stderr


@pytest.mark.parametrize(
    ("told", "has"),
    [
        (AVX2["NUMBA_CPU_FEATURES"], {"avx2"}),
        (AVX512["NUMBA_CPU_FEATURES"], {"avx2", "avx512f"}),
        ("+avx512f,+avx512bf16,-avx512vnni", {"avx512f", "avx512bf16"}),
        ("", set()),
        (None, {name for name in ("avx2", "avx512f", "avx512bf16", "avx512vnni") if FEATURES.get(name)}),
    ],
)
@pytest.mark.parametrize("name", [None, "haswell"])
def test_the_ways_are_those_of_the_processor_that_numba_compiles_for(
    name: str | None, told: str | None, has: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled._config, "CPU_NAME", name)
    monkeypatch.setattr(compiled._config, "CPU_FEATURES", told)
    assert {feature for feature in ("avx2", "avx512f", "avx512bf16", "avx512vnni") if llvm._has(feature)} == has
