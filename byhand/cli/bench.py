"""`byhand bench`: this machine's limits, byhand, and in a checkout the peers that are installed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from byhand.bench import results
from byhand.bench.engines import PRECISIONS
from byhand.bench.scenarios import SCENARIOS, scenarios_named
from byhand.bench.shapes import SHAPES
from byhand.cli.options import Commands, UsageError, integer, named_model
from byhand.cli.talk import check_target, print_json, talk

QUICK = ("decode", "prefill-128", "batch-8")
DEFAULT_SHAPE, DEFAULT_PRECISION, DEFAULT_SCENARIO = "smol-135m", "bf16", "decode"


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "bench",
        help="this machine's limit, byhand, and its peers",
        usage="byhand bench [options]",
        description="Measure how fast this machine reads memory and multiplies matrices, then byhand beside itself, "
        "and from a checkout beside every peer that is installed: each in a process of its own, in short bursts in "
        "turn, their times compared pair by pair. Checkpoints of real shapes are made on the spot, with random "
        "weights. --quick takes byhand beside itself, on the embedded model, in less than a minute.",
    )
    _add_what(parser)
    _add_how(parser)
    parser.add_argument("--out", metavar="FILE", help="keep the results, with every burst, in this JSON file")
    parser.add_argument("--skip-done", action="store_true", help="leave out what --out holds already")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.set_defaults(command=command)


def _add_what(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is measured (lists with spaces between)")
    what.add_argument("--quick", action="store_true", help=f"byhand beside itself: {', '.join(QUICK)}; few rounds")
    what.add_argument("-m", "--model", help="a checkpoint of yours: a folder, a hub id or byhand-tiny")
    what.add_argument(
        "--shape",
        nargs="+",
        metavar="NAME",
        help=f"make a checkpoint of {', '.join(SHAPES)} (default {DEFAULT_SHAPE})",
    )
    what.add_argument(
        "--precision", nargs="+", metavar="NAME", help=f"of {', '.join(PRECISIONS)} (default {DEFAULT_PRECISION})"
    )
    what.add_argument(
        "--scenario",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(SCENARIOS)}; batch, prefill, context; all (default {DEFAULT_SCENARIO})",
    )
    what.add_argument(
        "--peers",
        nargs="+",
        metavar="NAME",
        help="of benchmarks/peers, in a checkout of byhand; none; installed (the default)",
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how")
    how.add_argument("--prepare", action="store_true", help="only make and convert the checkpoints; measure nothing")
    how.add_argument("--rounds", type=integer, metavar="N", help="pairs of bursts with each opponent")
    how.add_argument("--threads", type=integer, metavar="N", help="for every engine (default: the cores)")
    how.add_argument("--cache", metavar="FOLDER", help="where made and converted checkpoints are kept")
    how.add_argument(
        "--llm",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of byhand's LLM, such as prefill=fast; may be repeated",
    )
    how.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="ENGINE=PATH",
        help="the interpreter of an engine; `peers` means all of them, `openvino-convert` what converts for it",
    )


def command(arguments: argparse.Namespace) -> int:
    """Measure, one scenario after the other; each is kept and shown as soon as it is there."""
    from byhand.bench import campaign

    out = check_target(arguments.out, "--out")
    request = _request(arguments)
    campaign.check(request)
    peers = campaign.peers_asked(request)
    if arguments.prepare:
        for plan in campaign.plans(request, peers):
            campaign.prepare(plan)
        return 0
    done = {results.key_of(entry) for entry in results.read(out)} if out else set()
    entries: list[results.Entry] = []
    for entry in _entries(request, peers, done if arguments.skip_done else set()):
        entries.append(entry)
        if out:
            results.save(out, entry)
        if not arguments.json:
            _show(entry)
    if arguments.json:
        print_json(results.document(entries))
    if not entries:
        talk("nothing was left to measure")
    return 0


def _entries(request: Any, peers: Any, done: set[tuple[str, ...]]) -> Iterator[results.Entry]:
    """The machine's limits, then every plan."""
    from byhand.bench import campaign

    if results.key_of(campaign.MACHINE) not in done:
        yield campaign.probe_machine(request.threads)
    for plan in campaign.plans(request, peers):
        if results.key_of(campaign.identity(plan)) in done:
            talk(f"{plan.source.name} {plan.precision} {plan.scenario.name} is there already")
        else:
            yield campaign.run(plan)


def _show(entry: results.Entry) -> None:
    from byhand.cli.views.benchmark import print_entry
    from byhand.cli.views.terminal import console_for

    print_entry(console_for(sys.stdout), entry)


def _request(arguments: argparse.Namespace) -> Any:
    from byhand.bench.campaign import INSTALLED, NONE, Request

    quick = arguments.quick
    if arguments.model is not None and arguments.shape:
        raise UsageError("--model and --shape cannot go together")
    for flag in ("rounds", "threads"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise UsageError(f"--{flag} is {value}; it must be at least 1")
    own_model = arguments.model is not None or (quick and not arguments.shape)
    return Request(
        scenarios=scenarios_named(arguments.scenario or (QUICK if quick else [DEFAULT_SCENARIO])),
        models=[_model(arguments.model)] if own_model else (),
        shapes=arguments.shape or [DEFAULT_SHAPE],
        precisions=arguments.precision or ["fp32" if quick and arguments.model is None else DEFAULT_PRECISION],
        peers=arguments.peers or ([NONE] if quick else [INSTALLED]),
        rounds=arguments.rounds or (2 if quick else None),
        threads=arguments.threads or os.cpu_count() or 1,
        cache=_cache(arguments.cache),
        pythons=_pairs(arguments.python, "--python", "ENGINE=PATH"),
        options=_options(arguments.llm),
        tell=talk,
    )


def _model(name: str | None) -> str | None:
    if name is not None and not name.strip():
        raise UsageError("--model is empty", hint="leave it out for the embedded model")
    return named_model(name)


def _cache(folder: str | None) -> Path:
    from byhand.bench.checkpoints import cache_root

    if folder is None:
        return cache_root()
    if not Path(folder).parent.is_dir() or Path(folder).is_file():
        raise UsageError(f"--cache: {folder} is no folder, and cannot become one")
    return Path(folder).resolve()


def _pairs(words: list[str], flag: str, form: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for word, (name, _, value) in zip(words, pairs, strict=True):
        if not name or not value:
            raise UsageError(f"{flag}: {word!r} is not of the form {form}")
    return {name: value for name, _, value in pairs}


def _options(words: list[str]) -> dict[str, Any]:
    from byhand.bench.campaign import option_value

    return {name: option_value(value) for name, value in _pairs(words, "--llm", "NAME=VALUE").items()}
