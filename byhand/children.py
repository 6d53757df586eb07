"""Processes of our own that run Python: isolated, so that nothing which happens to lie in the current folder is run.

With `-c` and `-m` Python looks for modules in the current folder first, and there may lie a `numba.py` or a `json.py`
of somebody else's: a checkpoint that was downloaded, a student's notes.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This very byhand is imported by its place: the folder that holds it may be the current one, and stays off the path.
_START = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
sys.path[:] = {path} or sys.path
spec = spec_from_file_location("byhand", {package!r})
sys.modules["byhand"] = package = module_from_spec(spec)
spec.loader.exec_module(package)
"""


def python(*arguments: str, interpreter: str | None = None) -> list[str]:
    """A command line for Python, isolated: this one, or another interpreter."""
    flags = ["-I", "-B"] if sys.dont_write_bytecode else ["-I"]
    return [interpreter or sys.executable, *flags, *arguments]


def code(source: str, *arguments: str, interpreter: str | None = None) -> list[str]:
    """A command line that runs code, with imports from where ours come from, or another interpreter's do."""
    path = [] if interpreter else trusted_path()
    start = _START.format(path=path, package=str(Path(__file__).with_name("__init__.py")))
    return python("-c", start + source, *arguments, interpreter=interpreter)


def module(name: str, *arguments: str, interpreter: str | None = None) -> list[str]:
    """A command line that runs a module, of this byhand or another package, as `-m` does."""
    source = f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return code(source, *arguments, interpreter=interpreter)


def trusted_path() -> list[str]:
    """Where this process imports from, without the current folder and what is named relative to it."""
    places = [Path(place) for place in sys.path]
    return [str(place) for place in places if place.is_absolute() and not _is_current(place)]


def _is_current(place: Path) -> bool:
    try:
        return place.samefile(Path.cwd())
    except OSError:  # one of them is not there
        return False
