"""`byhand models`: what can be opened, and what a folder or a hub id is before it is loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from byhand.cli.options import Commands, named_model
from byhand.cli.talk import print_json
from byhand.lookalikes import architectures


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "models",
        help="what can be opened; what a folder or hub id is",
        usage="byhand models [NAME] [options]",
        description="List the architectures that byhand has and the models that lie here. With a NAME, describe that "
        "folder, file or hub id from its config and its tensors' headers; no weights are loaded or fetched.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a folder, a file, a hub id or byhand-tiny")
    parser.add_argument("--revision", metavar="NAME", help="the branch, tag or commit on the hub")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """List, or describe one."""
    facts = _everything() if arguments.name is None else _one(arguments.name, arguments.revision)
    if arguments.json:
        print_json(facts)
        return 0
    from byhand.cli.views.facts import print_description, print_models
    from byhand.cli.views.terminal import console_for

    show = print_models if arguments.name is None else print_description
    show(console_for(sys.stdout), facts)
    return 0


def _one(name: str, revision: str | None) -> dict[str, Any]:
    from byhand.cli.describe import describe

    return describe(named_model(name), revision, set(architectures()))


def _everything() -> dict[str, Any]:
    from byhand.checkpoint import EMBEDDED

    return {"architectures": architectures(), "embedded": EMBEDDED, "cached": cached_models()}


def cached_models() -> list[str]:
    """The hub ids in the local cache that hold a config.json."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = sorted(Path(HF_HUB_CACHE).glob("models--*"))
    return [
        folder.name.removeprefix("models--").replace("--", "/")
        for folder in folders
        if any(folder.glob("snapshots/*/config.json"))
    ]
