"""What is not burst against burst: a cold start, forks against runs of their own, and a prompt read twice."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from time import monotonic
from typing import Any

from byhand.bench.process import EngineFailed, PeakWatcher, Worker
from byhand.bench.ratios import paired_ratio, spread
from byhand.bench.run import Contestant, Plan, files_for, open_worker, opening
from byhand.bench.scenarios import prompts

# Cold starts.


def cold_start(plan: Plan, contestant: Contestant, seed: int) -> dict[str, Any]:
    """A fresh process to its first token, as its parent's clock sees it, and the memory it took."""
    files = files_for(plan, contestant)
    request = opening(plan, contestant, files)
    request |= {"warm_up": prompts(plan.scenario, plan.source.vocab_size, f"cold {seed}"), "new": 1, "length": 256}
    with Worker(contestant.label, plan.python(contestant.engine), plan.threads) as worker:
        watcher = PeakWatcher(worker.process.pid)
        try:
            answer = worker.ask("open", **request)
            seconds = monotonic() - worker.started
            memory = worker.ask("memory")
        finally:
            peak = watcher.stop()
    clock = answer["clock"]
    return {
        "seconds": seconds,
        "interpreter": clock["started"] - worker.started,
        "open": clock["opened"] - clock["started"],
        "first_token": clock["first"] - clock["opened"],
        "memory": {**memory, "peak_anonymous": peak},
        "facts": {name: answer[name] for name in ("version", "weight_bytes", "ids")},
    }


def measure_cold(plan: Plan) -> dict[str, Any]:
    """Everyone in turn, fresh each time; the first round only brings the files into the page cache."""
    starts: dict[str, list[dict[str, Any]]] = {}
    failures: list[dict[str, str]] = []
    contestants = [plan.ours, *plan.opponents]
    for round_ in range(plan.rounds + 1):
        for contestant in contestants if round_ % 2 else contestants[::-1]:
            if any(failure["label"] == contestant.label for failure in failures):
                continue
            try:
                start = cold_start(plan, contestant, round_)
            except EngineFailed as error:
                failures.append({"label": contestant.label, "sentence": str(error)})
                plan.tell(str(error))
            else:
                starts.setdefault(contestant.label, []).append(start)
    if plan.ours.label not in starts:
        raise EngineFailed(failures[-1]["sentence"])
    warm = {label: found[1:] or found for label, found in starts.items()}
    facts = [
        {"label": each.label, "form": each.form, "runs": each.runs, **warm[each.label][0].pop("facts")}
        for each in contestants
        if each.label in warm
    ]
    return {
        "contestants": facts,
        "failures": failures,
        "starts": warm,
        "imports": import_memory(plan),
        "summary": {
            "starts": [_start_figures(each.label, warm[each.label]) for each in contestants if each.label in warm]
        },
    }


def import_memory(plan: Plan) -> dict[str, int]:
    """Memory of a process that has imported what byhand imports, and opened nothing."""
    with Worker("byhand's imports", plan.python("byhand"), plan.threads) as worker:
        return {name: int(value) for name, value in worker.ask("imports").items()}


def _start_figures(label: str, starts: list[dict[str, Any]]) -> dict[str, Any]:
    parts = ("interpreter", "open", "first_token")
    memory = {
        name: statistics.median(start["memory"][name] for start in starts if name in start["memory"])
        for name in starts[0]["memory"]
    }
    return {
        "label": label,
        "seconds": spread([start["seconds"] for start in starts]).to_json(),
        "parts": {part: statistics.median(start[part] for start in starts) for part in parts},
        "memory": memory,
    }


# byhand against itself.


def _compare(plan: Plan, names: tuple[str, str], one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two ways through the same work in one process, in turn, their order alternating."""
    with ExitStack() as stack:
        worker, facts = open_worker(plan, plan.ours)
        stack.callback(worker.close)
        bursts: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for round_ in range(plan.rounds):
            ways = list(zip(names, (one, other), strict=True))
            for name, way in ways if round_ % 2 == 0 else ways[::-1]:
                tokens = prompts(plan.scenario, plan.source.vocab_size, f"{name} {round_}")
                for prepare in way.get("before", ()):
                    worker.ask("call", prompts=tokens, **prepare)
                bursts[name].append(worker.ask("call", prompts=tokens, new=plan.scenario.new, **way["call"]))
    seconds = {name: [burst["seconds"] for burst in bursts[name]] for name in names}
    return {
        "contestants": [{"label": plan.ours.label, "form": plan.precision, "runs": "", **facts}],
        "failures": [],
        "bursts": bursts,
        "summary": {
            "ways": {name: spread(times).to_json() for name, times in seconds.items()},
            "ratio": paired_ratio(seconds[names[0]], seconds[names[1]]).to_json(),
        },
    }


def measure_forks(plan: Plan) -> dict[str, Any]:
    """Forks of one prompt, which is read once, against as many runs with prompts of their own."""
    shared = {"call": {"method": "forks", "shared": True}}
    own = {"call": {"method": "forks", "shared": False}}
    return _compare(plan, ("forks", "runs of their own"), shared, own)


def measure_prefix(plan: Plan) -> dict[str, Any]:
    """A prompt that was read a moment ago, its pages still known, against a new one."""
    known = {"before": [{"method": "generate", "new": 1}], "call": {"method": "again"}}
    new = {"call": {"method": "generate"}}
    return _compare(plan, ("read before", "new"), known, new)


def measure_profile(plan: Plan) -> dict[str, Any]:
    """Where a token's time goes, in byhand."""
    worker, facts = open_worker(plan, plan.ours)
    with worker:
        tokens = prompts(plan.scenario, plan.source.vocab_size, "profile")
        parts = worker.ask("profile", prompts=tokens, new=plan.scenario.new)
    return {
        "contestants": [{"label": plan.ours.label, "form": plan.precision, "runs": "", **facts}],
        "failures": [],
        "summary": parts,
    }
