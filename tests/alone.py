"""Code in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# What tells the kernels of which processor they are to be.
AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+avx,+sse4.2,+bmi,+bmi2"}
# The first processors with AVX-512: without its products of bfloat16 and of bytes.
AVX512 = {
    "NUMBA_CPU_NAME": "skylake-avx512",
    "NUMBA_CPU_FEATURES": AVX2["NUMBA_CPU_FEATURES"] + ",+avx512f,+avx512cd,+avx512bw,+avx512dq,+avx512vl",
}
LEAST = {"NUMBA_CPU_NAME": "x86-64" if sys.platform == "linux" else "generic", "NUMBA_CPU_FEATURES": ""}


def python(code: str, place: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code; the package is taken from `place` where it is named."""
    return run(["-c", code], place, **environment)


def run(arguments: list[str], place: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
