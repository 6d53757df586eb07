"""Compiles the kernels once for this processor, into a cache that is never stale; later runs load them from there.

Numba's own cache looks at the file of a kernel alone and misses changes in what it calls. So the folder's name is a
digest of everything that machine code depends on: another version or processor uses another folder.
"""

from __future__ import annotations

import hashlib
import os
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

from byhand.user_cache import user_cache

# What Numba's published types leave out: its settings, and some options of njit.
_config: Any = numba.config
_njit: Any = numba.njit

SOURCES = Path(__file__).parent

# The folders of other versions: so many of the last used stay, and whatever was used within a day.
KEPT = 4
RECENT_SECONDS = 24 * 3600


def digest(sources: Path = SOURCES) -> str:
    """A name for everything that the machine code depends on."""
    parts = [
        *(str(_config.CPU_NAME), str(_config.CPU_FEATURES), str(_config.OPT)),
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
    def is_kept(self) -> bool:
        """Whether the cache has it already."""
        folder = cache_folder()
        return folder is not None and any(folder.rglob(f"*.{self.name}-*.nbi"))

    @cached_property
    def _compiled(self) -> Any:
        folder = cache_folder()
        before = _config.CACHE_DIR
        _config.CACHE_DIR = str(folder or "")
        try:
            dispatcher = _njit(
                self._signature,
                cache=folder is not None,
                parallel=self._parallel,
                nogil=True,
                error_model="numpy",
            )(self._function)
        finally:
            _config.CACHE_DIR = before
        [compiled] = dispatcher.overloads.values()
        return compiled

    def load(self) -> Callable[..., None]:
        """The machine code as a function: addresses and counts in, nothing out. It lets go of the GIL."""
        # The compiled function itself: the dispatcher would look at the types of its arguments first.
        entry: Callable[..., None] = self._compiled.entry_point
        return entry

    @property
    def address(self) -> int:
        """Where the machine code lies, for team.py to call."""
        compiled = self._compiled
        place: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
        return place
