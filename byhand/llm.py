"""`LLM`: what can be asked of a model: read with it, start runs, generate, score."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from time import perf_counter
from typing import Any, cast

import torch

from byhand.engine import operations
from byhand.engine.state import RunState
from byhand.errors import BadRequest, PromptError, PromptTooLong
from byhand.opened import Opened, positive
from byhand.run import Run, check_token_ids
from byhand.sampling.dice import fresh_seed
from byhand.sampling.look import Look, look
from byhand.sampling.params import SamplingParams
from byhand.text import ChatTemplate
from byhand.types import Completion, Position, Reading, Score, Step, Token

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


class LLM(Opened):
    """A model that can be looked into. `model`: None (the embedded one), a folder, a .safetensors file or a hub id.

    dtype: "auto" keeps the weights as stored, or "float32", "bfloat16", "float16". device: "auto", "cpu", "cuda".
    cache_tokens: tokens that the KV cache holds over all runs. threads: processor threads.
    kernels: "auto", "cpu" (Numba) or "reference" (torch, on any device). quantize: None, "int8" or "int4".
    cache_dtype: of the keys and values: "auto" is "float32"; "bfloat16" halves the cache's memory and rounds.
    prefill: "exact" keeps float32's accuracy throughout; "fast" takes bfloat16 products for four rows or more: prompts,
        and runs that decode together.
    note: is told, line by line, what takes long the first time; the lines are in `notes` too.
    """

    # Text and ids.

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt: text gets the start-of-sequence token as the checkpoint's tokenizer adds it; ids stay."""
        if isinstance(prompt, str):
            self.check_fits(prompt)
            ids = self.check_ids(self.tokenizer.encode(prompt), "prompt")
            self._warn_doubled_start(ids)
        elif isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray):
            self._check_length(len(prompt))
            ids = self.check_ids(cast(Sequence[int], prompt), "prompt")
        else:
            raise PromptError(
                f"the prompt is a {type(prompt).__name__}; it must be text or a list of ids", param="prompt"
            )
        if not ids:
            raise PromptError("the prompt is empty: it has no token at all", param="prompt")
        self._check_length(len(ids))
        return ids

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of what a chat template has made: it wrote its own start-of-sequence token, so none is added."""
        self.check_fits(text)
        return self.encode(self.tokenizer.encode(text, add_special_tokens=False))

    def check_fits(self, text: str, param: str = "prompt") -> None:
        """Refuse a text that is too long however it is cut into tokens: its length tells, and it is not encoded."""
        if len(text) > self.context_length:
            fewest = self.tokenizer.fewest_tokens(text)
            self._check_length(fewest, param, f"{len(text)} characters, which are {fewest} tokens or more")

    def _check_length(self, tokens: int, param: str = "prompt", told: str = "") -> None:
        if tokens > self.context_length:
            told = told or f"{tokens} tokens"
            raise PromptTooLong(f"the {param} has {told}; this model reads {self.context_length}", param=param)

    def check_ids(self, ids: Sequence[int], param: str) -> list[int]:
        """Refuse ids that the model does not have."""
        return check_token_ids(ids, self.vocab_size, param, self.tokenizer)

    def continuation_ids(self, text: str) -> list[int]:
        """Ids of text that goes on after other text."""
        self.check_fits(text, "text")
        return self.check_ids(self.tokenizer.encode_continuation(text), "text")

    def token_id(self, token: int | str, param: str) -> int:
        """An id, or that of a text which is exactly one token."""
        return self.check_ids([self.tokenizer.one_token(token) if isinstance(token, str) else token], param)[0]

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
        """The same as ids."""
        return self.encode_rendered(self.render_chat(messages, **values))

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
        positive(top, "top")
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
        try:
            while waiting := [state for state in states if not state.is_finished]:
                self.engine.step(waiting)
                for state in waiting:
                    if state.is_finished:
                        self.engine.release(state)
        except BaseException:
            # The error's traceback holds the runs, and one of them the error: they would never be garbage.
            for state in states:
                self.engine.release(state)
                state.error = None
            raise

    def chat(self, messages: Messages, params: SamplingParams | None = None) -> Completion | list[Completion]:
        """`generate` through the checkpoint's chat template."""
        return self.generate(self.chat_ids(messages), params)


def _checked(params: SamplingParams | None) -> SamplingParams:
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise BadRequest(f"`params` is a {type(params).__name__}; it must be SamplingParams", param="params")
    return params


def _is_many(prompts: Prompt | Sequence[Prompt]) -> bool:
    """True for a list of prompts; a list of ids (or an empty list) is one prompt."""
    return isinstance(prompts, list | tuple) and any(isinstance(item, str | Sequence) for item in prompts)
