"""Weight formats: each says everything of itself, and one more file is one more format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from byhand.errors import BadRequest
from byhand.formats import Weight, float_formats, formats, quantized_formats
from byhand.quantize import quantize
from tests.alone import python
from tests.test_house import modules_after

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "quantisation.md"


def test_they_are_found_in_the_order_of_their_bits() -> None:
    assert list(formats()) == ["float32", "bfloat16", "float16", "int8", "int4"]
    assert (*float_formats(), *quantized_formats()) == tuple(formats())


def test_looking_for_them_loads_no_torch() -> None:
    loaded = modules_after("from byhand.formats import formats; formats()")
    assert "byhand.formats.int4" in loaded
    assert not loaded & {"torch", "numpy", "numba"}


@pytest.mark.parametrize("name", quantized_formats())
@pytest.mark.parametrize("shape", [(5, 64), (3, 33), (40, 1)])
def test_what_is_made_lies_as_the_format_says(name: str, shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape)
    weight, form = quantize(Weight.of(matrix), name), formats()[name]
    told = [(getattr(torch, part.dtype), part.shape) for part in form.parts(shape)]
    assert [(tensor.dtype, tuple(tensor.shape)) for tensor in weight.tensors] == told
    assert form.rows(weight, slice(None)).shape == shape
    long = form.parts((64, 4096))
    stored = sum(part.shape[0] * part.shape[1] * getattr(torch, part.dtype).itemsize for part in long)
    assert 8 * stored == form.bits * 64 * 4096


@pytest.mark.parametrize("name", formats())
def test_the_docs_name_every_format(name: str) -> None:
    assert f"`{name}`" in DOCS.read_text(encoding="utf-8") or formats()[name].is_float


def test_nothing_is_quantised_to_floats() -> None:
    with pytest.raises(BadRequest, match="quantize is 'float16'; it must be one of int8, int4"):
        quantize(Weight.of(torch.ones(2, 2)), "float16")
    with pytest.raises(BadRequest, match="nothing is quantised to float16"):
        formats()["float16"].quantize_blocks(Weight.of(torch.ones(2, 2)))


# Another's format, as CONTRIBUTING.md adds it.
[INT6] = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
USES = """
import sys
import byhand.formats
byhand.formats.__path__.append(sys.argv[1])
import torch
from byhand import LLM
from byhand.formats import quantized_formats
from byhand.kernels import native
assert quantized_formats() == ("int8", "int6", "int4"), quantized_formats()
truth, fast = (LLM(quantize="int6", kernels=kernels) for kernels in ("reference", "cpu"))
ids = list(range(300, 345))
assert (truth.logits(ids) - fast.logits(ids)).abs().max() < 1e-3
assert (truth.logits(ids) - LLM(quantize="int8").logits(ids)).abs().max() > 1e-3
runs = [llm.start(ids[:9], seed=1, max_tokens=6, ignore_eos=True) for llm in (truth, fast)]
assert len({tuple(step.token.id for step in run) for run in runs}) == 1
from byhand.cli.main import main
try:
    main(["quantize", "--help"])
except SystemExit:
    pass
"""


def test_one_file_more_is_one_format_more(tmp_path: Path) -> None:
    """It is loaded, quantised to, run by reference and by kernels of its own, and offered on the command line."""
    (tmp_path / "int6.py").write_text(INT6)
    done = python("import sys; sys.argv.append(" + repr(str(tmp_path)) + ")\n" + USES)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "int6: 8.4 bits a weight" in " ".join(done.stdout.split())
