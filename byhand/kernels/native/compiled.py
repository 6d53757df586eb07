"""Compiles the kernels once for this processor, into a cache that is never stale; later runs load them from there.

Numba's own cache looks at the file of a kernel alone and misses changes in what it calls, and tells nobody whether it
has one. So the kernels are kept here: in a folder whose name is a digest of everything that machine code depends on.
Another version or processor uses another folder; two installations of the same version share one.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import numba
from llvmlite import binding
from numba.core import codegen as _codegen
from numba.core import compiler as _compiler
from numba.core import registry as _registry
from numba.core import serialize as _serialize

from byhand.user_cache import user_cache

# What Numba's published types leave out: its settings, and some options of njit.
_config: Any = numba.config
_njit: Any = numba.njit
_result: Any = _compiler.CompileResult
_dumps: Any = _serialize.dumps
_host_features: Any = _codegen.get_host_cpu_features

SOURCES = Path(__file__).parent

# The folders of other versions: so many of the last used stay, and whatever was used within a day.
KEPT = 4
RECENT_SECONDS = 24 * 3600


def features() -> str:
    """The features of the processor that Numba compiles for, "+avx2,-avx512f,…": its settings before this machine's."""
    told = _config.CPU_FEATURES
    return str(_host_features() if told is None else told)


def digest(sources: Path = SOURCES) -> str:
    """A name for everything that the machine code depends on."""
    parts = [
        *(str(_config.CPU_NAME), features(), str(_config.OPT)),
        *(binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()),
        *(numba.__version__, llvmlite.__version__, sys.version, platform.machine(), sys.platform),
    ]
    name = hashlib.blake2b("\0".join(parts).encode(), digest_size=12)
    for file in sorted(sources.glob("*.py")):
        name.update(file.name.encode() + b"\0" + file.read_bytes())
    return name.hexdigest()


def prune(folder: Path) -> None:
    """Remove the kernels of versions that were last used long ago, beside this folder."""
    named_alike = len(folder.name)
    used = [
        (other.stat().st_mtime, other)
        for other in folder.parent.iterdir()
        if other != folder and len(other.name) == named_alike and other.is_dir() and not other.is_symlink()
    ]
    for last_used, other in sorted(used, reverse=True)[KEPT - 1 :]:
        if time.time() - last_used > RECENT_SECONDS:
            shutil.rmtree(other, ignore_errors=True)


@cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept; None where nothing can be written.

    Never a folder that others may write to, as the one for temporary files is: what is loaded from here is run.
    """
    folder = user_cache() / "kernels" / digest()
    try:
        is_new = not folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # its date is that of its last use
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return None
    if is_new:
        with suppress(OSError):
            prune(folder)
    return folder


def inlined(function: Any) -> Any:
    """A function that kernels are made of: compiled into each that calls it."""
    return _njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def specialise(templates: list[Any], names: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The same functions over another set of global names: each sees the others, and `names`, instead of its module's.

    This is how one source serves every format: a closure would do as well, but Numba keeps no cache of those.
    """
    scope = {**templates[0].__globals__, **names}
    for template in templates:
        function = FunctionType(template.__code__, scope, f"{template.__name__}_{label}")
        function.__qualname__ = function.__name__
        scope[template.__name__] = inlined(function)
    return scope


class Kernel:
    """One kernel: its machine code is loaded, or compiled and kept, when it is first asked for."""

    def __init__(self, function: Any, signature: str = "void(int64, int64)", *, parallel: bool = False) -> None:
        self.name: str = function.__name__
        self._function, self._signature, self._parallel = function, signature, parallel

    @property
    def _file(self) -> Path | None:
        folder = cache_folder()
        return None if folder is None else folder / f"{self.name}.kernel"

    @property
    def is_kept(self) -> bool:
        """Whether it need not be compiled any more."""
        return "_compiled" in self.__dict__ or (self._file is not None and self._file.is_file())

    @cached_property
    def _compiled(self) -> Any:
        return self._read() or self._compile()

    def _read(self) -> Any:
        """What an earlier run has kept; None where there is nothing, or a file that is damaged."""
        if self._file is None or not self._file.is_file():
            return None
        context = _registry.cpu_target.target_context
        context.refresh()
        try:
            return _result._rebuild(context, *pickle.loads(self._file.read_bytes()))
        except Exception:  # noqa: BLE001 - bytes that are no kernel fail in any way; it is compiled again
            return None

    def _compile(self) -> Any:
        options = {"parallel": self._parallel, "nogil": True, "error_model": "numpy"}
        [compiled] = _njit(self._signature, **options)(self._function).overloads.values()
        if self._file is not None:
            self._keep(self._file, compiled)
        return compiled

    def _keep(self, file: Path, compiled: Any) -> None:
        """Write it, whole or not at all: others may read at the same time."""
        with suppress(OSError), tempfile.TemporaryDirectory(dir=file.parent) as part_folder:
            part = Path(part_folder) / file.name
            part.write_bytes(_dumps(compiled._reduce()))
            part.replace(file)

    def load(self) -> Callable[..., None]:
        """The machine code as a function: addresses and counts in, nothing out. It lets go of the GIL."""
        # The compiled function itself: the dispatcher would look at the types of its arguments first.
        entry: Callable[..., None] = self._compiled.entry_point
        return entry

    @property
    def address(self) -> int:
        """Where the machine code lies, for team.py to call."""
        compiled = self._compiled
        address: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
        return address
