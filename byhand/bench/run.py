"""One scenario, measured: byhand beside each opponent, burst by burst, in changing order, probes around every pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from byhand.bench.checkpoints import Source, written_whole
from byhand.bench.engines import OURS, Peer
from byhand.bench.process import EngineFailed, Worker
from byhand.bench.scenarios import Scenario, prompts

CONTROL = "byhand (control)"
OUR_MODULE = "byhand.bench.engines.ours"
CONVERSION_LIMIT = 1200.0  # seconds

Tell = Callable[[str], None]
Burst = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Contestant:
    """An engine in one of its forms. `module` is its adapter; byhand is no peer."""

    label: str
    engine: str
    module: str
    form: str
    runs: str = ""
    peer: Peer | None = None

    @classmethod
    def of(cls, peer: Peer, form: str) -> Contestant:
        """A peer's form."""
        return cls(f"{peer.name} {form}", peer.name, peer.module, form, peer.runs[form], peer)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a measurement depends on. `pythons`: the interpreter of an engine, where it is not this one."""

    source: Source
    precision: str
    scenario: Scenario
    threads: int
    cache: Path
    rounds: int
    opponents: Sequence[Contestant] = ()
    pythons: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)  # of byhand's LLM
    tell: Tell = print

    def python(self, engine: str) -> str | None:
        """The interpreter for an engine: its own, else the peers', else this one."""
        own = self.pythons.get(engine)
        return own or (None if engine == OURS else self.pythons.get("peers"))

    @property
    def ours(self) -> Contestant:
        """byhand."""
        return Contestant(OURS, OURS, OUR_MODULE, self.precision)

    @property
    def twin(self) -> Contestant:
        """byhand again, in another process: what it shows against byhand is noise."""
        return Contestant(CONTROL, OURS, OUR_MODULE, self.precision)

    @property
    def against(self) -> list[Contestant]:
        """Everyone that byhand meets."""
        return [self.twin, *self.opponents]


# Files that engines need.


def _needs_files(plan: Plan, contestant: Contestant) -> bool:
    """byhand's quantised weights are made beforehand, unless `--llm quantize=…` asks for it on load."""
    if contestant.peer is None:
        return plan.precision in ("int8", "int4") and "quantize" not in plan.options
    return contestant.peer.converts


def files_for(plan: Plan, contestant: Contestant) -> Path | None:
    """The converted files of a contestant, written unless they are there."""
    if not _needs_files(plan, contestant):
        return None
    shared = contestant.peer.files if contestant.peer else {}
    name = shared.get(contestant.form, contestant.form)
    target = plan.cache / "converted" / plan.source.key / contestant.engine / name
    if not target.is_dir():
        plan.tell(f"converting {plan.source.name} for {contestant.label}")
        engine = contestant.engine
        python = plan.pythons.get(f"{engine}-convert") or plan.python(engine)
        with written_whole(target) as part, Worker(f"{engine}'s converter", python, plan.threads) as worker:
            _convert(plan, contestant, worker, part)
    return target


def _convert(plan: Plan, contestant: Contestant, worker: Worker, target: Path) -> None:
    paths = {"folder": str(plan.source.folder), "target": str(target)}
    try:
        worker.ask("convert", module=contestant.module, form=contestant.form, **paths, limit=CONVERSION_LIMIT)
    except EngineFailed as error:
        if (peer := contestant.peer) is None:
            raise
        needs = f"it needs {peer.converter}; --python {peer.name}-convert=PATH names an interpreter with it"
        raise EngineFailed(str(error), hint=needs) from error


# Opening.


def open_worker(plan: Plan, contestant: Contestant) -> tuple[Worker, dict[str, Any]]:
    """Start a contestant's process, open its engine, and give what it says of itself."""
    files = files_for(plan, contestant)
    worker = Worker(contestant.label, plan.python(contestant.engine), plan.threads)
    try:
        facts = worker.ask("open", **opening(plan, contestant, files))
    except EngineFailed:
        worker.close()
        raise
    return worker, facts


def opening(plan: Plan, contestant: Contestant, files: Path | None) -> dict[str, Any]:
    """The request that opens an engine: everyone warms up on the same prompts, in the batch's size."""
    scenario = plan.scenario
    short = [ids[:16] for ids in prompts(scenario, plan.source.vocab_size, "warm-up")]
    return {
        "module": contestant.module,
        "folder": str(plan.source.folder),
        "form": contestant.form,
        "files": str(files) if files else None,
        "threads": plan.threads,
        "batch": scenario.batch,
        "length": longest(plan),
        "options": dict(plan.options) if contestant.engine == OURS else {},
        "warm_up": short,
        "new": 8,
    }


def longest(plan: Plan) -> int:
    """Tokens of the longest run there will be: bursts may follow each other in one run."""
    scenario = plan.scenario
    return max(32, scenario.length + plan.rounds * (1 + len(plan.against)) * scenario.new)


@contextmanager
def machine_probe(threads: int) -> Iterator[Callable[[], float]]:
    """A process that measures the read bandwidth (GB/s) whenever it is asked."""
    with Worker("the bandwidth probe", threads=threads, extra={"OPENBLAS_NUM_THREADS": "1"}) as worker:
        yield lambda: float(worker.ask("probe", threads=threads)["best"])


# Measuring.

# What an engine takes beside its weights, roughly; and the share of the free memory that weights may fill.
BESIDE_WEIGHTS = 400e6
MEMORY_SHARE = 0.75


def free_bytes() -> float:
    """Memory that can be had now, where the system tells."""
    facts = Path("/proc/meminfo")
    if not facts.exists():
        return float("inf")
    lines = (line.split() for line in facts.read_text(encoding="utf-8").splitlines())
    return next(1024.0 * int(words[1]) for words in lines if words[0] == "MemAvailable:")


def folder_bytes(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@dataclass(slots=True)
class Bench:
    """The processes of one measurement, and what they have given so far."""

    plan: Plan
    probe: Callable[[], float]
    workers: dict[str, Worker] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    resumable: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)
    seeds: int = 0

    def converted(self) -> Iterator[tuple[Contestant, float]]:
        """The opponents whose files are there now, and the bytes each will take; a failure is told."""
        for contestant in self.plan.opponents:
            try:
                files = files_for(self.plan, contestant)
            except EngineFailed as error:
                self.fail(contestant.label, error)
            else:
                yield contestant, folder_bytes(files or self.plan.source.folder) + BESIDE_WEIGHTS

    def open(self, contestant: Contestant, stack: ExitStack) -> bool:
        """Open one; False, and a sentence, where it cannot be."""
        try:
            worker, facts = open_worker(self.plan, contestant)
        except EngineFailed as error:
            self.fail(contestant.label, error)
            return False
        stack.callback(worker.close)
        self.workers[contestant.label] = worker
        if facts.pop("resumable"):
            self.resumable.add(contestant.label)
        self.facts.append({"label": contestant.label, "form": contestant.form, "runs": contestant.runs, **facts})
        if not worker.settle():
            self.plan.tell(f"{contestant.label} goes on using the processor while it waits: others are disturbed")
        return True

    def fail(self, label: str, error: EngineFailed) -> None:
        """Write a failure down, and say it; the others go on."""
        self.failures.append({"label": label, "sentence": str(error)})
        self.plan.tell(str(error))

    def burst(self, label: str) -> Burst:
        """One burst of a contestant on new prompts; then it is waited for until its threads are still."""
        self.seeds += 1
        worker, scenario = self.workers[label], self.plan.scenario
        tokens = prompts(scenario, self.plan.source.vocab_size, str(self.seeds))
        if scenario.continues and label in self.resumable:
            if label not in self.begun:
                worker.ask("call", method="begin", prompts=tokens)
                self.begun.add(label)
            answer = worker.ask("burst", **{"continue": True}, new=scenario.new)
        else:
            answer = worker.ask("burst", prompts=tokens, new=scenario.new)
        return {**answer, "settled": worker.settle()}

    def pair(self, opponent: str, round_: int, ours_first: bool) -> None:
        """byhand and an opponent next to each other, between two probes."""
        order = [OURS, opponent] if ours_first else [opponent, OURS]
        before = self.probe()
        bursts = {label: self.burst(label) for label in order}
        after = self.probe()
        self.pairs.append(
            {
                "opponent": opponent,
                "round": round_,
                "first": order[0],
                "ours": bursts[OURS],
                "theirs": bursts[opponent],
                "bandwidth": [before, after],
            }
        )

    def play(self, opponents: Sequence[str]) -> None:
        """Every round with every opponent; who dies is left out from then on."""
        here = list(opponents)
        for round_ in range(self.plan.rounds):
            for place, opponent in enumerate(list(here)):
                try:
                    self.pair(opponent, round_, ours_first=(round_ + place) % 2 == 0)
                except EngineFailed as error:
                    if self.workers[OURS].process.poll() is not None:
                        raise
                    self.fail(opponent, error)
                    here.remove(opponent)


# The whole.


def companies_of(sized: Sequence[tuple[Contestant, float]], room: float) -> list[list[Contestant]]:
    """Opponents, each with the bytes it takes, in companies that fit into memory together; never an empty one."""
    companies: list[list[Contestant]] = [[]]
    left = room
    for contestant, size in sized:
        if companies[-1] and size > left:
            companies.append([])
            left = room
        companies[-1].append(contestant)
        left -= size
    return companies


def measure(plan: Plan) -> dict[str, Any]:
    """Run a scenario to its end and give all that was seen. Who fails is told, and the others go on."""
    with machine_probe(plan.threads) as probe, ExitStack() as stack:
        bench = Bench(plan, probe)
        sized = list(bench.converted())
        room = MEMORY_SHARE * free_bytes() - 2 * (folder_bytes(plan.source.folder) + BESIDE_WEIGHTS)
        if not bench.open(plan.ours, stack):
            raise EngineFailed(bench.failures[0]["sentence"])
        always = [plan.twin.label] if bench.open(plan.twin, stack) else []
        for company in companies_of(sized, room):
            with ExitStack() as inner:
                bench.play([*always, *(each.label for each in company if bench.open(each, inner))])
            always = []  # the control has had its rounds
        return {"contestants": bench.facts, "failures": bench.failures, "pairs": bench.pairs}
