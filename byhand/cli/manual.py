"""The help pages as docs/cli.md holds them: `python -m byhand.cli.manual docs/cli.md` writes them there anew."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from byhand.cli.main import build_parser
from byhand.cli.parsing import commands_of
from byhand.html import between_marks


def help_pages() -> str:
    """Every command's help as Markdown, the same on every terminal."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "98"
    try:
        parser = build_parser()
        pages = [("byhand", parser), *((f"byhand {name}", page) for name, page in commands_of(parser).items())]
        return "\n".join(f"### {name}\n\n```text\n{page.format_help()}```\n" for name, page in pages)
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def renewed(document: str) -> str:
    """A document whose help pages are made anew."""
    return between_marks(document, "help", help_pages())


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
