"""Many streams at once: byhand's server, its engine alone, llama-cpp-python's server, transformers' own batching.

    python -m benchmarks.serving --streams 1 4 8 16 32
    python -m benchmarks.serving --model FOLDER --gguf FILE --peers PYTHON --out benchmarks/results/serving/NAME.json

Every contestant lives in a process of its own and waits while another is measured. A burst is `--streams` clients that
ask in the same moment, each for `--tokens` greedy tokens after a prompt of its own that no other shares. For every
number of streams each contestant has a burst that is not counted, then `--rounds` that are, in turns. Every burst is
kept; what stands in docs/server.md are medians over all of them, with the least and the most:

    python -m benchmarks.serving --table docs/server.md benchmarks/results/serving/*.json
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

WORDS = [
    "red",
    "blue",
    "cat",
    "dog",
    "runs",
    "sleeps",
    "under",
    "over",
    "tree",
    "happy",
    "river",
    "stone",
    "and",
    "then",
]
PROMPT_WORDS = 48
COLUMNS = ("tokens/s", "first token p50", "first token p99", "gap p50", "gap p99")
TITLES = ("tokens/s", "first token, p50 ms", "p99 ms", "between tokens, p50 ms", "p99 ms")

Stamps = list[float]  # seconds since the burst began, one for each token or chunk
Row = dict[str, Any]
Burst = Callable[[Sequence[str], int], list[Stamps]]


def prompts(count: int, seed: int) -> list[str]:
    """Texts that have nothing in common."""
    dice = random.Random(seed)
    return [" ".join(dice.choices(WORDS, k=PROMPT_WORDS)) for _ in range(count)]


def at_percent(values: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def figures(streams: list[Stamps], tokens: int) -> dict[str, float]:
    """What one burst says: tokens a second in all, milliseconds otherwise."""
    firsts = [stamps[0] * 1e3 for stamps in streams]
    gaps = [(b - a) * 1e3 for stamps in streams for a, b in itertools.pairwise(stamps)]
    speed = len(streams) * tokens / max(stamps[-1] for stamps in streams)
    told = (speed, median(firsts), at_percent(firsts, 99), median(gaps), at_percent(gaps, 99))
    return dict(zip(COLUMNS, told, strict=True))


# Contestants over HTTP.


async def _stream(port: int, prompt: str, tokens: int, more: dict[str, Any], began: float) -> Stamps:
    """One client: the moments in which its chunks came."""
    asked = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, **more}
    body = json.dumps({name: value for name, value in asked.items() if value is not None}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    assert b" 200 " in await reader.readline()
    stamps = []
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            choice = json.loads(line[6:])["choices"][0]
            if choice["finish_reason"] is None:
                stamps.append(time.perf_counter() - began)
            elif choice["finish_reason"] != "length":
                raise RuntimeError(f"a stream ended with {choice['finish_reason']}")
    writer.close()
    return stamps


def over_http(port: int, more: dict[str, Any]) -> Burst:
    """Bursts against a server on this machine."""

    async def all_at_once(texts: Sequence[str], tokens: int) -> list[Stamps]:
        began = time.perf_counter()
        return await asyncio.gather(*(_stream(port, text, tokens, more, began) for text in texts))

    return lambda texts, tokens: asyncio.run(all_at_once(texts, tokens))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(command: list[str], port: int, more: dict[str, Any]) -> Iterator[Burst]:
    """A server process, from when it answers to its end."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        burst = over_http(port, more)
        try:
            for _ in range(600):
                try:
                    burst(prompts(1, 0), 2)
                    break
                except (OSError, AssertionError):
                    if process.poll() is not None:
                        raise SystemExit(f"{command[0]} ended with {process.returncode}") from None
                    time.sleep(0.2)
            yield burst
        finally:
            process.terminate()


# Contestants without a server: this file, run inside by the interpreter that has them.
# (-P: a neighbour of this file has the name of a module of the standard library.)


@contextmanager
def inside(python: str, what: str, model: str | None, threads: int) -> Iterator[Burst]:
    """Bursts in another process, one JSON line each way."""
    command = [
        python,
        "-P",
        __file__,
        "--inside",
        what,
        "--threads",
        str(threads),
        *(["--model", model] if model else []),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        to, back = process.stdin, process.stdout
        assert to is not None
        assert back is not None
        assert back.readline() == "ready\n"

        def burst(texts: Sequence[str], tokens: int) -> list[Stamps]:
            print(json.dumps([list(texts), tokens]), file=to, flush=True)
            return json.loads(back.readline())

        try:
            yield burst
        finally:
            to.close()


def engine_burst(model: str | None, threads: int) -> Burst:
    """byhand's loop over all runs, with no thread, queue or socket around it."""
    from byhand import LLM, SamplingParams

    llm = LLM(model, threads=threads or None, cache_tokens=16_384)

    def burst(texts: Sequence[str], tokens: int) -> list[Stamps]:
        began = time.perf_counter()
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        runs = [llm.open_run(llm.encode(text), params, seed=0) for text in texts]
        stamps: list[Stamps] = [[] for _ in runs]
        for run in runs:
            run._handle.go(tokens).result()

        def is_over() -> bool:
            for run, of_one in zip(runs, stamps, strict=True):
                of_one += [time.perf_counter() - began] * (run._sequence.generated - len(of_one))
            return all(len(of_one) == tokens for of_one in stamps)

        llm.driver.run(is_over)
        for run in runs:
            llm.engine.release(run._sequence)
        return stamps

    return burst


def transformers_burst(model: str | None, threads: int) -> Burst:
    """transformers' continuous batching, as `generate_batch` runs it, told of every token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

    if threads:
        torch.set_num_threads(threads)
    opened: Any = AutoModelForCausalLM.from_pretrained(str(model), dtype="auto", attn_implementation="sdpa")
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    options = ContinuousBatchingConfig(num_blocks=512, max_batch_tokens=512, use_cuda_graph=False)

    def burst(texts: Sequence[str], tokens: int) -> list[Stamps]:
        settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        manager = opened.init_continuous_batching(generation_config=settings, continuous_batching_config=options)
        manager.start()
        began = time.perf_counter()
        names = [manager.add_request(tokenizer(text)["input_ids"], streaming=True) for text in texts]
        stamps: dict[str, Stamps] = {name: [] for name in names}
        while any(len(of_one) < tokens for of_one in stamps.values()):
            told = manager.get_result(timeout=60)
            known = stamps[told.request_id]
            known += [time.perf_counter() - began] * (len(told.generated_tokens) - len(known))
        manager.stop(block=True)
        return [stamps[name] for name in names]

    return burst


def work_inside(what: str, model: str | None, threads: int) -> None:
    """The other end of `inside`."""
    burst = {"engine": engine_burst, "transformers": transformers_burst}[what](model, threads)
    burst(prompts(1, 0), 2)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(burst(*json.loads(line))), flush=True)


# The whole.


def contestants(asked: argparse.Namespace, stack: ExitStack) -> dict[str, Burst]:
    """Whoever takes part, opened one after the other."""
    threads = asked.threads or os.cpu_count() or 1
    port, peer_port = _free_port(), _free_port()
    ours = [sys.executable, "-m", "byhand", "serve", "--port", str(port), "--served-name", "model"]
    ours += ["--threads", str(threads), "--cache-tokens", "16384", *(["--model", asked.model] if asked.model else [])]
    found = {
        "byhand serve": stack.enter_context(server(ours, port, {"ignore_eos": True})),
        "byhand's engine alone": stack.enter_context(inside(sys.executable, "engine", asked.model, threads)),
    }
    if asked.gguf:
        theirs = [asked.peers, "-m", "llama_cpp.server", "--model", asked.gguf, "--model_alias", "model"]
        theirs += ["--port", str(peer_port), "--n_ctx", "2048", "--n_threads", str(threads), "--n_threads_batch"]
        theirs += [str(threads), "--interrupt_requests", "False"]
        never_ends = {"logit_bias": {str(asked.eos): -100}}
        found["llama-cpp-python's server"] = stack.enter_context(server(theirs, peer_port, never_ends))
    if asked.peers and not asked.without_transformers:
        from byhand.checkpoint import open_checkpoint

        folder = str(open_checkpoint(asked.model).folder)
        opened = stack.enter_context(inside(asked.peers, "transformers", folder, threads))
        found["transformers' continuous batching"] = opened
    return found


def measure(asked: argparse.Namespace) -> Iterator[Row]:
    """For each number of streams, in turns, a row for every burst that counts."""
    told = {"date": date.today().isoformat(), "model": Path(asked.model or "embedded").name, "tokens": asked.tokens}
    with ExitStack() as stack:
        bursts = contestants(asked, stack)
        for count in asked.streams:
            for turn in range(asked.rounds + 1):
                for name, burst in bursts.items():
                    one = figures(burst(prompts(count, 1000 * count + turn), asked.tokens), asked.tokens)
                    if turn:
                        rounded = {column: round(value, 2) for column, value in one.items()}
                        yield told | {"streams": count, "contestant": name} | rounded


def keep(row: Row, file: Path) -> None:
    """Add a row to the file of results."""
    known = json.loads(file.read_text()) if file.exists() else []
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[\n" + ",\n".join(json.dumps(each) for each in [*known, row]) + "\n]\n")


def cell(values: Sequence[float]) -> str:
    """The median, with the least and the most."""
    digits = 1 if median(values) < 20 else 0
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def table(rows: Sequence[Row]) -> str:
    """The page's table: a line for every model, number of streams and contestant, over all its bursts."""
    groups: dict[tuple[str, int, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["model"], row["streams"], row["contestant"]].append(row)
    lines = [f"| model | streams | | bursts | {' | '.join(TITLES)} |", "|---" * (4 + len(COLUMNS)) + "|"]
    for model, streams, contestant in sorted(groups, key=lambda key: key[:2]):
        bursts = groups[model, streams, contestant]
        cells = [cell([burst[column] for burst in bursts]) for column in COLUMNS]
        lines.append(f"| {model} | {streams} | {contestant} | {len(bursts)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_table(page: Path, files: Sequence[Path]) -> None:
    """Renew the table of a page."""
    from byhand.html import between_marks

    rows = [row for file in files for row in json.loads(file.read_text())]
    page.write_text(between_marks(page.read_text(encoding="utf-8"), "serving", table(rows)), encoding="utf-8")


def main() -> None:
    """Measure, print every burst, and add to a file of results; or make the table of such files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--gguf", help="the same model for llama.cpp")
    parser.add_argument("--eos", type=int, default=2, help="the end of sequence that llama.cpp must not take")
    parser.add_argument("--peers", metavar="PYTHON", help="the interpreter that has the peers")
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, nargs="+", metavar=("PAGE", "FILE"))
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        work_inside(asked.inside, asked.model, asked.threads)
        return
    if asked.table:
        page, *files = asked.table
        write_table(page, files)
        return
    for row in measure(asked):
        print("|", " | ".join(str(value) for value in row.values()), "|", flush=True)
        if asked.out:
            keep(row, asked.out)


if __name__ == "__main__":
    main()
