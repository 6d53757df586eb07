"""`Opened`: a checkpoint with its tokenizer, its model and one engine; what `LLM` opens, and lets go of."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import torch

from byhand.cache.kv_cache import PAGE_SIZE, KVCache
from byhand.checkpoint import Checkpoint, open_checkpoint
from byhand.collector import without_collector
from byhand.engine.engine import Engine
from byhand.engine.inline import InlineDriver
from byhand.errors import BadRequest, ByhandError
from byhand.kernels import open_kernels
from byhand.models import Model, build, context_of, read_config
from byhand.notes import Progress
from byhand.sampling.options import AllOptions
from byhand.sampling.params import SamplingParams, suggested
from byhand.text import Tokenizer
from byhand.types import ModelIdentity
from byhand.weights import format_of

T = TypeVar("T")

CACHE_DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}

HINTS_SHOWN = 20  # of a generation_config.json, in one note

# Room for so many full contexts, or this share of the memory, whichever is less.
CONTEXTS_CACHED = 16
MEMORY_SHARE = 0.25
# Where Linux says how much memory a container may have: the second form of its groups, and the first.
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Opened:
    """A model, its tokenizer and one engine, until it is closed. `LLM` says what the options mean."""

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        cache_tokens: int | None = None,
        threads: int | None = None,
        revision: str | None = None,
        kernels: str = "auto",
        quantize: str | None = None,
        prefill: str = "exact",
        cache_dtype: str | torch.dtype = "auto",
        context: int | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(positive(threads, "threads"))
        if model is not None and (not isinstance(model, str | os.PathLike) or not str(model)):
            must = "a folder, a file, a hub id, or None for the embedded model"
            raise BadRequest(f"`model` is {model!r}; it must be {must}", param="model")
        dtype = _word(dtype)
        self.checkpoint: Checkpoint = open_checkpoint(model, revision=revision)
        read_config(self.checkpoint)  # what cannot be opened at all is told before its tokenizer is looked at
        self.context = context_of(self.checkpoint, context)
        self.tokenizer = Tokenizer.open(self.checkpoint.folder)
        self.notes: list[str] = list(self.checkpoint.notes)
        self._tell = note
        if self.context.note is not None:
            self._note(self.context.note)
        place = _device(_word(device))
        cached_as = _cache_dtype(_word(cache_dtype))
        with without_collector():
            backend = open_kernels(kernels, place, self._note, threads=threads, prefill=prefill)
        weight_format = quantize or format_of(self.checkpoint, dtype)
        with ThreadPoolExecutor(1, "byhand-prepare") as beside:
            loaded = beside.submit(backend.load, weight_format, cached_as)
            self._model: Model | None = build(
                self.checkpoint, backend, dtype=dtype, device=place, quantize=quantize, note=self._note
            )
            self._engine: Engine | None = self._open_engine(cache_tokens, cached_as)
            loaded.result()
            self._driver: InlineDriver | None = None
        backend.prepare({spec.head_dim for spec in self.model.layer_specs}, cached_as)

    def _note(self, line: str) -> None:
        if not isinstance(line, Progress):
            self.notes.append(line)
        if self._tell is not None:
            self._tell(line)

    def _open_engine(self, cache_tokens: int | None, dtype: torch.dtype) -> Engine:
        specs = self.model.layer_specs
        page_bytes = KVCache(specs, 0, dtype=dtype).page_bytes
        if cache_tokens is None:
            pages = _default_pages(self.context.length, page_bytes)
        else:
            pages = -(-positive(cache_tokens, "cache_tokens") // PAGE_SIZE)
            if self.model.device.type == "cpu":
                _check_memory(pages, page_bytes)
        cache = KVCache(specs, pages, device=self.model.device, dtype=dtype)
        root = f"{self.checkpoint.identity.digest}/{sorted(self.model.formats.items())}/{cache.dtype}".encode()
        return Engine(self.model, self.tokenizer, cache, root=root, eos_ids=self.eos_ids, context=self.context)

    # What was opened.

    @property
    def model(self) -> Model:
        """The layers and their weights."""
        return self._still_open(self._model)

    @property
    def engine(self) -> Engine:
        """The one owner of the model and its cache."""
        return self._still_open(self._engine)

    @property
    def driver(self) -> InlineDriver:
        """What steps the engine's loop for this LLM's runs; a stage that asks in the middle of a step gets its own."""
        engine = self.engine
        with engine.lock:
            if self._driver is None:
                self._driver = InlineDriver(engine)
            return InlineDriver(engine) if self._driver.is_stepping else self._driver

    def _still_open(self, part: T | None) -> T:
        if part is None:
            raise ByhandError(f"this LLM was closed: open {self.name!r} again")
        return part

    @property
    def name(self) -> str:
        """The name it was opened by."""
        return self.checkpoint.identity.name

    @property
    def identity(self) -> ModelIdentity:
        """Name, type, digest and dtype: what a record remembers of its model."""
        checkpoint = self.checkpoint
        return ModelIdentity(
            checkpoint.identity.name, checkpoint.model_type, checkpoint.identity.digest, self.model.dtype
        )

    @property
    def vocab_size(self) -> int:
        """Ids of the model; the tokenizer may know fewer."""
        return self.model.vocab_size

    @property
    def context_length(self) -> int:
        """Tokens the model can read at most, prompt and continuation."""
        return self.engine.context.length

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a run: the union of what config, generation config and tokenizer name."""
        return frozenset(token for token in self.tokenizer.eos_ids if token < self.vocab_size)

    @property
    def generation_config(self) -> dict[str, Any]:
        """The checkpoint's own sampling settings: shown, and applied only on request."""
        return self.checkpoint.generation_config

    def checkpoint_params(self, **changes: Unpack[AllOptions]) -> SamplingParams:
        """The checkpoint's own settings as SamplingParams, with changes of yours; a note names what is left out."""
        self.checkpoint_hints()
        return SamplingParams.from_checkpoint(self.generation_config, vocab_size=self.vocab_size, **changes)

    def checkpoint_hints(self) -> dict[str, Any]:
        """What of the checkpoint's own settings is understood, by SamplingParams' names; a note names the rest."""
        hints, left_out = suggested(self.generation_config, self.vocab_size, self.context_length)
        more = f" and {len(left_out) - HINTS_SHOWN} more" if len(left_out) > HINTS_SHOWN else ""
        line = f"of generation_config.json byhand leaves out {', '.join(left_out[:HINTS_SHOWN])}{more}"
        if left_out and line not in self.notes:
            self._note(line)
        return hints

    # Life and death.

    def close(self) -> None:
        """Let go of the weights and the cache; a Run that is still held keeps what it needs."""
        if self._driver is not None:
            self._driver.engine.collect()
        self._model = self._engine = self._driver = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._model is None:
            return f"LLM({self.name!r}, closed)"
        return f"LLM({self.name!r}, {self.model.dtype}, {self.vocab_size} ids, context {self.context_length})"


def positive(value: int, param: str) -> int:
    """A whole number of at least 1, or a sentence that names the option."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest(f"`{param}` is {value!r}; it must be an integer of at least 1", param=param)
    return value


def _word(value: str | torch.dtype | torch.device) -> str:
    """torch's own dtypes and devices by their names; the rest as it is."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype | torch.device) else value


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if str(name).split(":")[0] not in ("cpu", "cuda"):
        raise BadRequest(f"`device` is {name!r}; known: auto, cpu, cuda", param="device")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadRequest("`device` is 'cuda', but torch sees no CUDA device here", param="device")
    return torch.device(name)


def _cache_dtype(name: str) -> torch.dtype:
    if name not in CACHE_DTYPES:
        raise BadRequest(f"`cache_dtype` is {name!r}; it must be one of {', '.join(CACHE_DTYPES)}", param="cache_dtype")
    return CACHE_DTYPES[name]


def _memory() -> int:
    """Bytes of memory that this process may have: the machine's, or less where it runs in a container with a limit."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # not there, or "max"
            return min(whole, int(limit.read_text()))
    return whole


def _default_pages(context_length: int, page_bytes: int) -> int:
    affordable = int(_memory() * MEMORY_SHARE) // page_bytes
    return max(1, min(CONTEXTS_CACHED * -(-context_length // PAGE_SIZE), affordable))


def _check_memory(pages: int, page_bytes: int) -> None:
    """Refuse a cache that can never fit: the system would end the process when it is written, without a word."""
    needed, there = pages * page_bytes, _memory()
    if needed > there:
        raise BadRequest(
            f"a cache of {pages * PAGE_SIZE:,} tokens takes {needed / 1e9:.1f} GB, and this machine has "
            f"{there / 1e9:.1f} GB of memory for it",
            hint=f"`cache_tokens`, --cache-tokens, must be less than {there // page_bytes * PAGE_SIZE}",
            param="cache_tokens",
        )
