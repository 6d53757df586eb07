"""From what is asked for to entries of results: which checkpoints, which engines are here, which scenarios fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from byhand.bench import results
from byhand.bench.checkpoints import Source, make, source_of
from byhand.bench.engines import PRECISIONS, Peer, peers_module
from byhand.bench.extras import measure_cold, measure_forks, measure_prefix, measure_profile
from byhand.bench.process import EngineFailed, Worker
from byhand.bench.run import Contestant, Plan, files_for, measure
from byhand.bench.scenarios import Scenario
from byhand.bench.shapes import shape_config
from byhand.bench.summary import summarise
from byhand.errors import BadRequest

INSTALLED, NONE = "installed", "none"
FROM_A_CHECKOUT = "other engines are measured from a checkout of byhand, whose folder benchmarks/ no wheel holds"

# How each kind of scenario is measured, where not burst against burst.
MEASURES: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "cold": measure_cold,
    "forks": measure_forks,
    "prefix": measure_prefix,
    "profile": measure_profile,
}

# What tells the machine's own entry from the others.
MACHINE: results.Entry = {"model": "", "precision": "", "scenario": "machine", "options": {}}


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for. `models` are folders of one's own; without any, `shapes` are made."""

    scenarios: Sequence[Scenario]
    models: Sequence[str | None] = ()
    shapes: Sequence[str] = ()
    precisions: Sequence[str] = ("bf16",)
    peers: Sequence[str] = (INSTALLED,)
    rounds: int | None = None
    threads: int = 1
    cache: Path = Path()
    pythons: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    tell: Callable[[str], None] = print


# Which engines are here.


def peers_asked(request: Request) -> list[Peer]:
    """The peers to run: none, those named, or those installed; their files lie in a checkout alone."""
    if NONE in request.peers:
        return []
    if (peers := peers_module()) is not None:
        found: list[Peer] = peers.asked(request.peers, request.pythons, request.tell)
        return found
    if INSTALLED not in request.peers:
        raise BadRequest(f"--peers is {' '.join(request.peers)!r}; {FROM_A_CHECKOUT}", param="--peers")
    request.tell(f"byhand alone: {FROM_A_CHECKOUT}")
    return []


def opponents(peers: Sequence[Peer], precision: str, source: Source, scenario: Scenario) -> list[Contestant]:
    """The peers' forms for a precision, of those that know the model's type."""
    return [
        Contestant.of(peer, form)
        for peer in peers
        if not peer.families or source.model_type in peer.families
        for form in peer.contestants(precision, scenario.kind)
    ]


# Which measurements there are to make.


def _sources(request: Request, precision: str) -> Iterator[Source]:
    if not request.models:
        for shape in request.shapes:
            yield make(shape, precision, request.cache, request.tell)
        return
    from byhand.checkpoint import open_checkpoint

    for model in request.models:
        checkpoint = open_checkpoint(model)
        name = checkpoint.identity.name.replace("/", "--")
        yield source_of(name, f"{name}-{checkpoint.identity.digest[:8]}", checkpoint.folder)


def check(request: Request) -> None:
    """Refuse now what could never be measured."""
    for precision in request.precisions:
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise BadRequest(f"--precision is {precision!r}; it must be one of {known}", param="--precision")
    if request.models:
        from byhand.checkpoint import open_checkpoint

        for model in request.models:
            open_checkpoint(model)
    else:
        for shape in request.shapes:
            shape_config(shape)


def plans(request: Request, peers: Sequence[Peer]) -> Iterator[Plan]:
    """Every measurement, one after the other; what does not fit a model's context is told and left out."""
    for precision in request.precisions:
        for source in _sources(request, precision):
            for scenario in request.scenarios:
                if scenario.length > source.context_length:
                    request.tell(f"{source.name} reads {source.context_length} tokens: {scenario.name} is left out")
                else:
                    yield _plan(request, source, precision, scenario, peers)


def _plan(request: Request, source: Source, precision: str, scenario: Scenario, peers: Sequence[Peer]) -> Plan:
    return Plan(
        source=source,
        precision=precision,
        scenario=scenario,
        threads=request.threads,
        cache=request.cache,
        rounds=request.rounds or scenario.rounds,
        opponents=opponents(peers, precision, source, scenario),
        pythons=request.pythons,
        options=request.options,
        tell=request.tell,
    )


def entry_of(plan: Plan, measurement: dict[str, Any]) -> results.Entry:
    """A measurement with all that tells what was measured, where and when."""
    burst_by_burst = plan.scenario.kind not in MEASURES
    return {
        **identity(plan),
        "when": results.now(),
        "machine": results.machine(plan.threads),
        "batch": plan.scenario.batch,
        "prompt": plan.scenario.prompt,
        "new": plan.scenario.new,
        "summary": summarise(plan.scenario, measurement) if burst_by_burst else measurement.pop("summary"),
        **measurement,
    }


def identity(plan: Plan) -> results.Entry:
    """What tells a plan's entry from the others."""
    return {
        "model": plan.source.name,
        "precision": plan.precision,
        "scenario": plan.scenario.name,
        "options": dict(plan.options),
    }


def prepare(plan: Plan) -> None:
    """Convert what the plan's engines want, and measure nothing; who cannot be converted is told."""
    for contestant in (plan.ours, *plan.opponents):
        try:
            files_for(plan, contestant)
        except EngineFailed as error:
            plan.tell(str(error))


def run(plan: Plan) -> results.Entry:
    """Make a measurement."""
    return entry_of(plan, MEASURES.get(plan.scenario.kind, measure)(plan))


def probe_machine(threads: int) -> results.Entry:
    """The machine's limits alone."""
    with Worker("the bandwidth probe", threads=threads, extra={"OPENBLAS_NUM_THREADS": "1"}) as worker:
        worker.ask("probe", threads=threads)  # the first reading wakes the memory up
        bandwidth = worker.ask("probe", threads=threads)
    with Worker("the matrix probe", threads=threads) as worker:
        rates = worker.ask("probe", threads=threads, matrix=True)
    return {
        **MACHINE,
        "when": results.now(),
        "machine": results.machine(threads),
        "summary": {"bandwidth": bandwidth, "matrix": rates},
    }


def option_value(text: str) -> Any:
    """An option's value as it is typed: JSON where it is, else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
