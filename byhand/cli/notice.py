"""What is told once: an empty file in the user's cache says that it was."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from byhand.user_cache import user_cache


def told_folder() -> Path:
    """Where it is remembered."""
    return user_cache() / "told"


def is_news(about: str) -> bool:
    """Whether this was never asked before here. Where nothing can be remembered, everything stays news."""
    try:
        folder = told_folder()
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / blake2b(about.encode(), digest_size=12).hexdigest()
        is_known = mark.exists()
        mark.touch()
    except (OSError, RuntimeError, ValueError):  # RuntimeError: there is no home
        return True
    return not is_known
