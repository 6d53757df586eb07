"""Compiles the kernels that the tests run, before several processes want them at once: `python -m tests.ready`."""

from __future__ import annotations

import os
import subprocess
import sys

from llvmlite import binding

from byhand.cli.talk import talk
from byhand.kernels import native
from byhand.kernels.native.compiling import compile_kernels
from tests.alone import AVX2

RARE = {name for name in native.GATED if name != "gated_silu"}


def main() -> None:
    """Those of this processor, and where it is another, of one with AVX2 only."""
    # Gates by other activation functions than silu are many, and few tests run them: they are made when one does.
    known = {name: kernel for name, kernel in native.kernels().items() if not name.startswith(tuple(RARE))}
    names = [name for name, kernel in known.items() if not kernel.is_kept]
    if names:
        talk(f"compiling {len(names)} kernels: {os.environ.get('NUMBA_CPU_NAME', 'for this processor')}")
        compile_kernels(names, talk)
    if binding.get_host_cpu_features().get("avx512f") and "NUMBA_CPU_NAME" not in os.environ:
        subprocess.run([sys.executable, "-m", "tests.ready"], env={**os.environ, **AVX2}, check=True)


if __name__ == "__main__":
    main()
