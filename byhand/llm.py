"""`LLM`: a model, its tokenizer and one engine. Open it, read with it, start runs, generate."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self, cast

import torch

from byhand.checkpoint import Checkpoint, open_checkpoint
from byhand.collector import without_collector
from byhand.engine import operations
from byhand.engine.engine import Engine
from byhand.engine.state import RunState
from byhand.errors import BadRequest, ByhandError, PromptError, PromptTooLong
from byhand.kernels import open_kernels
from byhand.kv_cache import PAGE_SIZE, KVCache
from byhand.models import build
from byhand.record import ModelIdentity
from byhand.run import Run, check_token_ids
from byhand.sampling.dice import fresh_seed
from byhand.sampling.look import Look, look
from byhand.sampling.params import SamplingParams
from byhand.text import ChatTemplate, Tokenizer
from byhand.types import Completion, Position, Reading, Score, Step, Token
from byhand.weights import format_of

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]

CACHE_DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}

# Room for so many full contexts, or this share of the memory that is free now, whichever is less.
CONTEXTS_CACHED = 16
MEMORY_SHARE = 0.25


class LLM:
    """A model that can be looked into. `model`: None (the embedded one), a folder, a .safetensors file or a hub id.

    dtype: "auto" keeps the weights as stored, or "float32", "bfloat16", "float16". device: "auto", "cpu", "cuda".
    cache_tokens: tokens that the KV cache holds over all runs. threads: processor threads.
    kernels: "auto", "cpu" (Numba) or "reference" (torch, on any device). quantize: None, "int8" or "int4".
    cache_dtype: of the keys and values: "auto" is "float32"; "bfloat16" halves the cache's memory and rounds.
    prefill: "exact" keeps float32's accuracy throughout; "fast" takes bfloat16 products for four rows or more: prompts,
        and runs that decode together.
    note: is told, line by line, what takes long the first time; the lines are in `notes` too.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        dtype: str = "auto",
        device: str = "auto",
        cache_tokens: int | None = None,
        threads: int | None = None,
        revision: str | None = None,
        kernels: str = "auto",
        quantize: str | None = None,
        prefill: str = "exact",
        cache_dtype: str = "auto",
        note: Callable[[str], None] | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(_positive(threads, "threads"))
        self.checkpoint: Checkpoint = open_checkpoint(model, revision=revision)
        self.tokenizer = Tokenizer.open(self.checkpoint.folder)
        self.notes: list[str] = list(self.checkpoint.notes)
        self._tell = note
        place = _device(device)
        cached_as = _cache_dtype(cache_dtype)
        with without_collector():
            backend = open_kernels(kernels, place, self._note, threads=threads, prefill=prefill)
        form = quantize or format_of(self.checkpoint, dtype)
        with ThreadPoolExecutor(1, "byhand-prepare") as beside:
            prepared = beside.submit(backend.prepare, form, cached_as)
            self.model = build(self.checkpoint, backend, dtype=dtype, device=place, quantize=quantize)
            self.engine = self._open_engine(cache_tokens, cached_as)
            prepared.result()
        if self.model.dtype != form:  # a pickle says only when it is read what it holds
            backend.prepare(self.model.dtype, cached_as)

    def _note(self, line: str) -> None:
        self.notes.append(line)
        if self._tell is not None:
            self._tell(line)

    def _open_engine(self, cache_tokens: int | None, dtype: torch.dtype) -> Engine:
        specs = self.model.layer_specs
        page_bytes = KVCache(specs, 0, dtype=dtype).page_bytes
        if cache_tokens is None:
            pages = _default_pages(self.context_length, page_bytes)
        else:
            pages = -(-_positive(cache_tokens, "cache_tokens") // PAGE_SIZE)
        cache = KVCache(specs, pages, device=self.model.device, dtype=dtype)
        root = f"{self.checkpoint.identity.digest}/{self.model.dtype}/{cache.dtype}".encode()
        return Engine(self.model, self.tokenizer, cache, root=root, eos_ids=self.eos_ids)

    # What was opened.

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
        return self.model.context_length

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a run: the union of what config, generation config and tokenizer name."""
        return self.tokenizer.eos_ids

    @property
    def generation_config(self) -> dict[str, Any]:
        """The checkpoint's own sampling settings: shown, and applied only on request."""
        return self.checkpoint.generation_config

    def checkpoint_params(self, **changes: Any) -> SamplingParams:
        """The checkpoint's own settings as SamplingParams, with changes of yours."""
        return SamplingParams.from_checkpoint(self.generation_config, **changes)

    # Text and ids.

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt: text gets the start-of-sequence token as the checkpoint's tokenizer adds it; ids stay."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
            self._warn_doubled_start(ids)
        elif isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray):
            ids = self.check_ids(cast(Sequence[int], prompt), "prompt")
        else:
            raise PromptError(
                f"the prompt is a {type(prompt).__name__}; it must be text or a list of ids", param="prompt"
            )
        if not ids:
            raise PromptError("the prompt is empty: it has no token at all", param="prompt")
        if len(ids) > self.context_length:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens; this model reads {self.context_length}", param="prompt"
            )
        return ids

    def check_ids(self, ids: Sequence[int], param: str) -> list[int]:
        """Refuse ids that the model does not have."""
        return check_token_ids(ids, self.vocab_size, param)

    def _warn_doubled_start(self, ids: list[int]) -> None:
        warning = self.tokenizer.doubled_bos(ids)
        if warning:
            warnings.warn(warning, stacklevel=4)

    def tokenize(self, text: str) -> list[Token]:
        """The tokens of a text, the start-of-sequence token included."""
        ids = self.tokenizer.encode(text)
        self._warn_doubled_start(ids)
        return [self.tokenizer.token(token) for token in ids]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self.tokenizer.decode(self.check_ids(ids, "ids"))

    @cached_property
    def template(self) -> ChatTemplate:
        """The checkpoint's chat template, opened when it is first asked for."""
        return ChatTemplate.open(self.checkpoint.folder, self.tokenizer)

    def render_chat(self, messages: Messages, **values: Any) -> str:
        """The prompt text that the checkpoint's chat template makes of messages."""
        return self.template.render(messages, **values)

    def chat_ids(self, messages: Messages, **values: Any) -> list[int]:
        """The same as ids. The template writes its own start token, so none is added."""
        return self.encode(self.tokenizer.encode(self.render_chat(messages, **values), add_special_tokens=False))

    # Prompt processing, looked at.

    def read(self, prompt: Prompt, top: int = 5) -> Reading:
        """What the model predicts after EVERY position of a prompt, with the best `top` candidates each.

        Works in bounded memory: a block of logits is looked at and dropped before the next is made.
        """
        ids = self.encode(prompt)
        started = perf_counter()
        positions = list(self.iter_read(ids, top))
        return Reading(positions, perf_counter() - started)

    def iter_read(self, prompt: Prompt, top: int = 5) -> Iterator[Position]:
        """The positions of `read`, one by one as they are computed."""
        ids = self.encode(prompt)
        _positive(top, "top")
        tokens = [self.tokenizer.token(token) for token in ids]
        pieces = tuple(token.text for token in tokens)
        for position, row in self._look_through(ids, top):
            best = tuple(self.engine.candidate(*entry) for entry in row.top)
            actual = None if row.actual is None else self.engine.candidate(*row.actual)
            yield Position(position, tokens[position], best[0], best[:top], actual, row.entropy, pieces)

    def _look_through(self, ids: list[int], top: int) -> Iterator[tuple[int, Look]]:
        for start, logits in self._all_logits(ids):
            following: list[int | None] = [*ids[start + 1 : start + 1 + len(logits)]]
            following += [None] * (len(logits) - len(following))
            found = self.model.kernels.surveys(logits, [top] * len(logits))
            yield from enumerate(look(logits, top, following, found), start)

    def _all_logits(self, ids: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """(first position, (rows, vocab) float32) over all positions, on pages that are let go at the end."""
        run = self.engine.open(ids, SamplingParams(), seed=0, reuse=False)
        try:
            yield from self.engine.logit_blocks(run, publish=False)
        finally:
            self.engine.release(run)

    def score(self, prompt: Prompt) -> Score:
        """Log-probability of every token given those before it, and the perplexity."""
        ids = self.encode(prompt)
        rows = [row.actual for _, row in self._look_through(ids, 1) if row.actual is not None]
        return Score(
            tokens=[self.tokenizer.token(token) for token in ids],
            logprobs=[None, *(row.logprob for row in rows)],
            ranks=[None, *(row.rank for row in rows)],
        )

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The raw matter: (len(ids), vocab) float32, the scores of every next token after every position."""
        return torch.cat([logits for _, logits in self._all_logits(self.encode(list(ids)))])

    # Runs.

    def start(self, prompt: Prompt, params: SamplingParams | None = None) -> Run:
        """A run: the prompt is processed, no token is chosen yet."""
        params = _checked(params)
        if params.n != 1:
            raise BadRequest(f"`n` is {params.n}; `start` makes one run: use fork, or generate", param="n")
        return self.start_run(self.encode(prompt), params, seed=params.seed, choice=0)

    def start_run(self, ids: list[int], params: SamplingParams, *, seed: int | None, choice: int) -> Run:
        """The same from ids, with the dice given; a run resumed so goes on as if it had never stopped."""
        run = self.open_run(ids, params, seed=seed, choice=choice)
        self.engine.prefill([run._state])
        return run

    def open_run(self, ids: list[int], params: SamplingParams, *, seed: int | None, choice: int = 0) -> Run:
        """A run of which nothing is computed yet, for a batch."""
        params.check_vocabulary(self.vocab_size)
        seed = fresh_seed() if seed is None else seed
        return Run(self, self.engine.open(self.encode(ids), params, seed=seed, choice=choice))

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Step]:
        """The steps of a run, as they come."""
        yield from self.start(prompt, params)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> Completion | list[Completion]:
        """Run to the end: one Completion, or for a list of prompts or n > 1 a flat list, prompt by prompt."""
        params = _checked(params)
        many = _is_many(prompts)
        listed = cast(list[Prompt], prompts if many else [prompts])
        runs: list[Run] = []
        for ids in [self.encode(prompt) for prompt in listed]:
            runs += self._choices(ids, params, others=[run._state for run in runs])
        self._finish([run._state for run in runs])
        completions = [run.completion() for run in runs]
        return completions if many or params.n > 1 else completions[0]

    def _choices(self, ids: list[int], params: SamplingParams, others: list[RunState]) -> list[Run]:
        """`n` runs of one prompt; the prompt is processed once and its pages are shared."""
        first = self.open_run(ids, params, seed=params.seed)
        if params.n == 1:
            return [first]
        self.engine.prefill([first._state], others)
        forks = (operations.fork(self.engine, first._state, choice=choice) for choice in range(1, params.n))
        return [first, *(Run(self, state) for state in forks)]

    def _finish(self, states: list[RunState]) -> None:
        while waiting := [state for state in states if not state.is_finished]:
            self.engine.step(waiting)
            for state in waiting:
                if state.is_finished:
                    self.engine.release(state)

    def chat(self, messages: Messages, params: SamplingParams | None = None) -> Completion | list[Completion]:
        """`generate` through the checkpoint's chat template."""
        return self.generate(self.chat_ids(messages), params)

    # Life and death.

    def close(self) -> None:
        """Let go of the weights and the cache; a Run that is still held keeps what it needs."""
        self.__dict__.pop("model", None)
        self.__dict__.pop("engine", None)

    def __getattr__(self, name: str) -> Any:
        if name in ("model", "engine"):
            raise ByhandError(f"this LLM was closed: open {self.name!r} again")
        raise AttributeError(f"LLM has no attribute {name!r}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        if "model" not in self.__dict__:
            return f"LLM({self.name!r}, closed)"
        return f"LLM({self.name!r}, {self.model.dtype}, {self.vocab_size} ids, context {self.context_length})"


def _checked(params: SamplingParams | None) -> SamplingParams:
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise BadRequest(f"`params` is a {type(params).__name__}; it must be SamplingParams", param="params")
    return params


def _is_many(prompts: Prompt | Sequence[Prompt]) -> bool:
    """True for a list of prompts; a list of ids (or an empty list) is one prompt."""
    return isinstance(prompts, list | tuple) and any(isinstance(item, str | Sequence) for item in prompts)


def _positive(value: int, param: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest(f"`{param}` is {value!r}; it must be an integer of at least 1", param=param)
    return value


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise BadRequest(f"`device` is {name!r}; known: auto, cpu, cuda", param="device")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadRequest("`device` is 'cuda', but torch sees no CUDA device here", param="device")
    return torch.device(name)


def _cache_dtype(name: str) -> torch.dtype:
    if name not in CACHE_DTYPES:
        raise BadRequest(f"`cache_dtype` is {name!r}; it must be one of {', '.join(CACHE_DTYPES)}", param="cache_dtype")
    return CACHE_DTYPES[name]


def _default_pages(context_length: int, page_bytes: int) -> int:
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    affordable = int(free * MEMORY_SHARE) // page_bytes
    return max(1, min(CONTEXTS_CACHED * -(-context_length // PAGE_SIZE), affordable))
