"""Where byhand keeps what it can make again: compiled kernels, made checkpoints, and what was told once."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def user_cache() -> Path:
    """The folder that BYHAND_CACHE names, or `byhand` where this system keeps such things."""
    if chosen := os.environ.get("BYHAND_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "byhand"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "byhand" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "byhand"
