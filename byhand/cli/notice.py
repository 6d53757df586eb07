"""What is told once: an empty file in the user's cache says that it was."""

from __future__ import annotations

from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from byhand.user_cache import user_cache

_TROUBLE = (OSError, ValueError, RuntimeError)  # RuntimeError: nobody knows where the home is


def told_folder() -> Path:
    """Where it is remembered."""
    return user_cache() / "told"


def was_told(about: str) -> bool:
    """Whether `now_told` was said of this before, by any command."""
    with suppress(*_TROUBLE):
        return _mark(about).exists()
    return False


def now_told(about: str) -> None:
    """Remember it. Where nothing can be written, it stays news."""
    with suppress(*_TROUBLE):
        told_folder().mkdir(parents=True, exist_ok=True)
        _mark(about).touch()


def _mark(about: str) -> Path:
    return told_folder() / blake2b(about.encode(), digest_size=12).hexdigest()
