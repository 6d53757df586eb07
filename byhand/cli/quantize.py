"""`byhand quantize`: any checkpoint that can be opened, in 8 or 4 bits, as a folder that loads at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from byhand.cli.options import QUANTIZED, Commands, named_model
from byhand.cli.talk import print_json, talk
from byhand.formats import described, formats

if TYPE_CHECKING:
    from byhand.convert import Quantized


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "quantize",
        help="write a checkpoint in 8 or 4 bits",
        usage="byhand quantize SOURCE TARGET --to FORM [options]",
        description="Write any checkpoint that byhand can open with its matrices in 8 or 4 bits, as a folder that "
        "loads at once. Norms, biases and tables of positions stay as they are.",
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, a .safetensors file, a hub id or byhand-tiny")
    parser.add_argument("target", metavar="TARGET", help="a new or an empty folder")
    parser.add_argument(
        "--to",
        choices=QUANTIZED,
        required=True,
        help="; ".join(f"{name}: {formats()[name].bits:g} bits a weight" for name in QUANTIZED),
    )
    parser.add_argument(
        "--tensor-type",
        action="append",
        default=[],
        type=_tensor_type,
        metavar="PATTERN=FORMAT",
        help="another format for the matrices whose names a pattern fits (* is anything): 'lm_head.weight=int8', "
        f"'*.down_proj.weight=bfloat16'; one of {', '.join(formats())}; may be repeated, the first that fits counts",
    )
    parser.add_argument("--revision", metavar="NAME", help="the branch, tag or commit on the hub")
    parser.add_argument("--json", action="store_true", help="print one JSON object: what is in codes, what is not")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Quantise, and say what became of it."""
    from byhand.convert import quantize_checkpoint

    source, target = named_model(arguments.source), Path(arguments.target)
    types = arguments.tensor_type
    done = quantize_checkpoint(source, target, arguments.to, arguments.revision, tensor_types=types)
    said = described({arguments.to, *(name for _, name in types if not formats()[name].is_float)})
    if arguments.json:
        print_json({**_as_json(done, arguments.to), **({"tensor_types": dict(types)} if types else {})})
    else:
        talk(_sentence(done, said))
    return 0


def _tensor_type(text: str) -> tuple[str, str]:
    pattern, _, name = text.rpartition("=")
    if not pattern or name not in formats():
        must = f"PATTERN=FORMAT with a format of {', '.join(formats())}"
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form {must}")
    return pattern, name


def _as_json(done: Quantized, weight_format: str) -> dict[str, object]:
    return {
        "folder": str(done.folder),
        "form": weight_format,
        "matrices": list(done.matrices),
        "kept": list(done.kept),
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
    }


def _sentence(done: Quantized, weight_format: str) -> str:
    before, after = (f"{size / 1e6:,.0f} MB" for size in (done.bytes_before, done.bytes_after))
    return (
        f"written: {done.folder}, {len(done.matrices)} matrices in {weight_format}, {len(done.kept)} small tensors "
        f"(norms, biases, positions) as they were, {before} to {after}"
    )
