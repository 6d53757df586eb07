"""One engine in a process of its own: JSON lines in, JSON lines out. Run by process.py.

Requests carry `op`; the answer is one object, {"error": sentence} where the engine fails. What libraries print to
stdout goes to stderr, so that it cannot spoil the pipe.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, TextIO

from byhand.bench.engines import Setting, module_of

STARTED = monotonic()
SHOWN_IDS = 8

Answer = dict[str, Any]


def _setting(request: dict[str, Any]) -> Setting:
    files = request.get("files")
    return Setting(
        folder=Path(request["folder"]),
        form=request["form"],
        threads=request["threads"],
        batch=request.get("batch", 1),
        length=request.get("length", 256),
        files=Path(files) if files else None,
        options=request.get("options") or {},
    )


def convert(request: dict[str, Any]) -> Answer:
    """Write the files an engine wants."""
    module_of(request["module"]).convert(Path(request["folder"]), request["form"], Path(request["target"]))
    return {"converted": request["target"]}


class Host:
    """Holds the engine that the first request opens, and answers the others."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.operations: dict[str, Callable[[dict[str, Any]], Answer]] = {
            "open": self.open,
            "burst": self.burst,
            "call": self.call,
            "memory": self.memory,
            "imports": self.imports,
            "profile": self.profile,
            "convert": convert,
            "probe": self.probe,
        }

    def answer(self, request: dict[str, Any]) -> Answer:
        """Do what is asked; a failure becomes a sentence."""
        try:
            return self.operations[request["op"]](request)
        except Exception as error:  # noqa: BLE001 - whatever a foreign engine raises is told, not passed on
            line = (str(error).strip() or "no reason given").splitlines()[0]
            return {"error": f"{type(error).__name__}: {line[:300]}"}

    def open(self, request: dict[str, Any]) -> Answer:
        """Open the engine, and let it warm up on a prompt that is nobody else's."""
        self.engine = module_of(request["module"]).Adapter(_setting(request))
        opened = monotonic()
        first = self.engine.generate(request["warm_up"], request["new"])
        return {
            "version": self.engine.version(),
            "weight_bytes": self.engine.weight_bytes(),
            "ids": first.ids[0][:SHOWN_IDS],
            "resumable": hasattr(self.engine, "go_on"),
            **(
                {"cache_token_bytes": self.engine.cache_token_bytes()}
                if hasattr(self.engine, "cache_token_bytes")
                else {}
            ),
            "clock": {"started": STARTED, "opened": opened, "first": monotonic()},
        }

    def burst(self, request: dict[str, Any]) -> Answer:
        """Generate, on the clock. `continue`: `new` tokens more for the runs that `begin` read."""
        return self._timed("go_on" if request.get("continue") else "generate", request)

    def call(self, request: dict[str, Any]) -> Answer:
        """Any other burst that an adapter has, by its method's name."""
        return self._timed(request["method"], request)

    def _timed(self, method: str, request: dict[str, Any]) -> Answer:
        arguments = [request[name] for name in ("prompts", "new", "shared") if name in request]
        started = perf_counter()
        tokens = getattr(self.engine, method)(*arguments)
        seconds = perf_counter() - started
        wanted = request.get("new", 1)
        counts = {len(ids[-wanted:]) for ids in tokens.ids}
        if counts != {wanted}:
            raise RuntimeError(f"it gave {sorted(counts)} new tokens where {wanted} were asked for")
        return {"seconds": seconds, "stamps": [stamp - started for stamp in tokens.stamps]}

    def memory(self, request: dict[str, Any]) -> Answer:
        """What the process holds, by the system's count and by the engine's own."""
        of_engine = self.engine.memory() if hasattr(self.engine, "memory") else {}
        return {**process_memory(), **of_engine}

    def profile(self, request: dict[str, Any]) -> Answer:
        """Where byhand's time goes."""
        from byhand.bench.profile import profile

        return profile(self.engine.llm, request["prompts"][0], request["new"])

    def imports(self, request: dict[str, Any]) -> Answer:
        """What byhand's imports alone cost: torch, Numba and its own modules; no model."""
        started = monotonic()
        import_module("byhand.llm")
        import_module("byhand.kernels.cpu")
        return {**process_memory(), "milliseconds": round((monotonic() - started) * 1000)}

    def probe(self, request: dict[str, Any]) -> Answer:
        """Measure the machine itself."""
        from byhand.bench.probe import Probe

        if self.engine is None:
            self.engine = Probe(request["threads"])
        rates: Answer = self.engine.matrix_rates() if request.get("matrix") else self.engine.bandwidths()
        return rates


def process_memory() -> dict[str, int]:
    """Bytes: the peak resident size, and now those that no file backs, where the system tells."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"peak": peak if sys.platform == "darwin" else peak * 1024}
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
        found |= {
            name: int(fields[key].split()[0]) * 1024
            for key, name in (("VmHWM", "peak"), ("RssAnon", "anonymous"))
            if key in fields
        }
    return found


def _own_channel() -> TextIO:
    """The pipe to the parent; from now on stdout is stderr for everyone else."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def main() -> None:
    """Answer request after request until stdin ends."""
    channel, host = _own_channel(), Host()
    for line in sys.stdin:
        channel.write(json.dumps(host.answer(json.loads(line))) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
