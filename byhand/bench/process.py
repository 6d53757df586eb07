"""The parent's side of a worker: start it, ask it, notice when it dies, and wait until it is quiet."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self

from byhand import children
from byhand.errors import ByhandError

# A thread pool may go on spinning for a while after its work: so long is waited for it to stop.
PATIENCE = 1.5
LOOK_AGAIN = 0.05
TIME_LIMIT = 600.0


class EngineFailed(ByhandError):
    """An engine's process died, fell silent or said that it cannot."""


def environment(threads: int) -> dict[str, str]:
    """What every worker is given: the same number of threads, and no downloads."""
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **os.environ,
        **dict.fromkeys(pools, str(threads)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
    }


class Worker:
    """A process that holds one engine. `ask` waits for its answer; whatever goes wrong is EngineFailed."""

    def __init__(
        self, name: str, python: str | None = None, threads: int = 1, extra: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.started = monotonic()
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self.process = subprocess.Popen(
                children.module("byhand.bench.worker", interpreter=python),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env={**environment(threads), **(extra or {})},
            )
        except OSError as error:
            raise EngineFailed(f"{name}: {python} cannot be run: {error.strerror}") from error
        self._lines: Queue[bytes] = Queue()
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def ask(self, op: str, *, limit: float = TIME_LIMIT, **fields: Any) -> dict[str, Any]:
        """Send a request and give the answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
            self.process.stdin.flush()
            line = self._lines.get(timeout=limit)
        except OSError:
            line = b""
        except Empty:
            self.close()
            raise EngineFailed(f"{self.name} gave no answer within {limit:.0f} s") from None
        if not line:
            raise EngineFailed(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineFailed(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        code = self.process.wait()
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return f"{self.name}: its process ended with code {code}" + (f": {lines[-1][:300]}" if lines else "")

    def settle(self) -> bool:
        """Wait until the process uses no processor time any more; False if it never stops."""
        deadline = monotonic() + PATIENCE
        while monotonic() < deadline:
            before = cpu_seconds(self.process.pid)
            sleep(LOOK_AGAIN)
            if before is None or cpu_seconds(self.process.pid) == before:
                return True
        return False

    def close(self) -> None:
        """End the process and wait for it."""
        if self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except OSError:
                self.process.kill()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def cpu_seconds(pid: int) -> float | None:
    """Processor time a process has used so far, where the system tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class PeakWatcher:
    """Looks every few milliseconds how much memory that no file backs a process holds, and keeps the most."""

    def __init__(self, pid: int, every: float = 0.004) -> None:
        self.peak = 0
        self._file = Path(f"/proc/{pid}/status")
        self._every, self._on = every, True
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._on:
            try:
                text = self._file.read_text(encoding="utf-8")
            except OSError:
                return
            _, found, rest = text.partition("RssAnon:")
            self.peak = max(self.peak, int(rest.split()[0]) * 1024 if found else 0)
            sleep(self._every)

    def stop(self) -> int:
        """The most that was seen, in bytes."""
        self._on = False
        self._thread.join()
        return self.peak
