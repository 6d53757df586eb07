"""`byhand convert`: any checkpoint that can be opened, as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from byhand.cli.options import DTYPES, Commands, named_model
from byhand.cli.talk import talk


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "convert",
        help="write a checkpoint as safetensors",
        usage="byhand convert SOURCE TARGET [options]",
        description="Write any checkpoint that byhand can open, a pytorch_model.bin too, as a folder of safetensors.",
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, a .safetensors file or a hub id")
    parser.add_argument("target", metavar="TARGET", help="a new or an empty folder")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default auto: as stored)")
    parser.add_argument("--revision", metavar="NAME", help="the branch, tag or commit on the hub")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Convert."""
    from byhand.convert import convert

    dtype = None if arguments.dtype == "auto" else arguments.dtype
    folder = convert(named_model(arguments.source), Path(arguments.target), dtype, arguments.revision)
    talk(f"written: {folder}")
    return 0
