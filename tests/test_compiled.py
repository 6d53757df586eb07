"""The compile cache: never stale, content with a package that cannot be written; and other processors and threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from byhand.errors import BadRequest
from byhand.kernels import open_kernels
from byhand.kernels.native import compiled

PACKAGE = Path(compiled.__file__).parents[2]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_any_change_of_a_source_is_another_folder(tmp_path: Path) -> None:
    sources = tmp_path / "native"
    shutil.copytree(compiled.SOURCES, sources, ignore=shutil.ignore_patterns("__pycache__"))
    before = compiled.digest(sources)
    assert before == compiled.digest()
    for file in sorted(sources.glob("*.py")):
        text = file.read_bytes()
        file.write_bytes(text + b"\n")
        assert compiled.digest(sources) != before, file
        file.write_bytes(text)
    assert compiled.digest(sources) == before


def test_another_processor_is_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiled.digest()
    monkeypatch.setattr(compiled._config, "CPU_NAME", "haswell")
    assert compiled.digest() != before


def test_kernels_of_other_versions_are_pruned(tmp_path: Path) -> None:
    day, now = 24 * 3600, time.time()
    ages = {"a" * 24: 0.1, "b" * 24: 0.5, "c" * 24: 3, "d" * 24: 2, "e" * 24: 9, "f" * 24: 8, "notes": 9}
    for name, days in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel.nbc").write_text("")
        os.utime(tmp_path / name, (now - days * day,) * 2)
    ours = tmp_path / ("0" * 24)
    ours.mkdir()
    compiled.prune(ours)
    left = {path.name[0] for path in tmp_path.iterdir()}
    assert left == {"0", "a", "b", "d", "n"}  # ours and three more; what is no cache stays


def test_what_was_used_today_is_never_pruned(tmp_path: Path) -> None:
    for number in range(1, 9):
        (tmp_path / (str(number) * 24)).mkdir()
    ours = tmp_path / ("0" * 24)
    ours.mkdir()
    compiled.prune(ours)
    assert len(list(tmp_path.iterdir())) == 9


USE = """
import torch
from byhand.kernels.cpu import Cpu
from byhand.kernels import native
from byhand.weights import Weight
kernels = Cpu(threads=2)
out = kernels.rms_norm(torch.ones(2, 20), torch.ones(20), 0.0)
assert torch.allclose(out, torch.ones(2, 20)), out
"""


def test_a_second_run_loads_what_the_first_compiled(tmp_path: Path) -> None:
    compiles = USE + "print(sum(k.is_kept for k in native.kernels().values()))"
    assert python(compiles, BYHAND_CACHE=str(tmp_path)).stdout.strip() == "2"
    [code] = tmp_path.rglob("*rms_norm*.nbc")
    written = code.stat().st_mtime_ns
    assert python(compiles, BYHAND_CACHE=str(tmp_path)).stdout.strip() == "2"
    assert code.stat().st_mtime_ns == written


def test_a_package_and_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    package, blocked = tmp_path / "site" / "byhand", tmp_path / "blocked"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    blocked.write_text("a file where a folder should be")
    before = sorted(package.rglob("*"))
    result = python(USE, BYHAND_CACHE=str(blocked), PYTHONPATH=str(package.parent), PYTHONDONTWRITEBYTECODE="1")
    assert result.returncode == 0, result.stderr
    assert sorted(package.rglob("*")) == before


PRODUCTS = """
import torch
from byhand.kernels.cpu import Cpu
from byhand.quantize import quantize
from byhand.kernels import reference
from byhand.weights import Weight
import byhand.kernels.cpu.calls as page
page.SMALL = 0
kernels = Cpu(threads=2)
matrix = torch.randn(301, 100)
for weight in (Weight.of(matrix.bfloat16()), Weight.of(matrix.half()), quantize(Weight.of(matrix), "int4")):
    for rows in (1, 7):
        x = torch.randn(rows, 100)
        truth = x.double() @ reference.ROWS[weight.format](weight, slice(None)).double().T
        ours = kernels.linear(x, weight)
        assert (ours - truth).abs().max() <= 1e-5 * truth.abs().max(), (weight.format, rows)
print("right")
"""


def test_a_processor_with_avx2_only() -> None:
    result = python(PRODUCTS, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx2,+fma,+f16c,+avx,+sse4.2,+bmi,+bmi2")
    assert result.stdout.strip() == "right", result.stderr


def test_a_processor_with_the_least_there_is() -> None:
    result = python(USE + "print('right')", NUMBA_CPU_NAME="x86-64" if sys.platform == "linux" else "generic")
    assert result.stdout.strip() == "right", result.stderr


THREADS = """
import threading, torch
from byhand.kernels.cpu import Cpu
import byhand.kernels.cpu.calls as page
from byhand.weights import Weight
page.SMALL = 0
weight, x = Weight.of(torch.randn(512, 256)), torch.randn(1, 256)
wrong = []

def work():
    kernels = Cpu(threads=2)
    truth = x @ weight.tensors[0].T
    for _ in range(200):
        if not torch.allclose(kernels.linear(x, weight), truth, atol=1e-4):
            wrong.append(1)

threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("wrong" if wrong else "right")
"""


@pytest.mark.parametrize("layer", ["workqueue", "default"])
def test_two_engines_in_two_threads(layer: str) -> None:
    result = python(THREADS, NUMBA_THREADING_LAYER=layer)
    assert result.stdout.strip() == "right", result.stderr


def test_without_numba_the_reference_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("byhand.kernels.cpu", "byhand.kernels.native"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    notes: list[str] = []
    kernels = open_kernels("auto", torch.device("cpu"), notes.append, threads=None, prefill="exact")
    assert getattr(kernels, "__name__", "") == "byhand.kernels.reference"
    assert len(notes) == 1
    assert "Numba cannot be imported" in notes[0]
    with pytest.raises(BadRequest, match="Numba cannot be imported"):
        open_kernels("cpu", torch.device("cpu"), notes.append, threads=None, prefill="exact")


def test_kernels_for_a_device() -> None:
    options = {"threads": 1, "prefill": "exact"}
    with pytest.raises(BadRequest, match="kernels is 'abacus'"):
        open_kernels("abacus", torch.device("cpu"), print, **options)
    with pytest.raises(BadRequest, match="the device is cuda"):
        open_kernels("cpu", torch.device("cuda"), print, **options)
    assert type(open_kernels("auto", torch.device("cpu"), print, **options)).__name__ == "Cpu"
    assert open_kernels("auto", torch.device("cuda"), print, **options).__name__ == "byhand.kernels.reference"
