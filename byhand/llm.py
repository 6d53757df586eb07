"""`LLM`: what can be asked of a model: read with it, start runs, generate, score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter
from typing import Any, Unpack, overload

import torch

from byhand.engine.inline import Collector
from byhand.engine.request import RequestHandle
from byhand.engine.sequence import common_length
from byhand.errors import BadRequest, PromptError
from byhand.opened import positive
from byhand.prompts import Messages, Prompt, as_prompts
from byhand.run import Run
from byhand.sampling.chain import Settings
from byhand.sampling.look import Look, look
from byhand.sampling.options import Options
from byhand.sampling.params import SamplingParams
from byhand.texts import Texts
from byhand.types import Completion, Position, Reading, Score, Step

__all__ = ["LLM", "Messages", "Prompt"]


class LLM(Texts):
    """A model that can be looked into. `model`: None (the embedded one), a folder, a .safetensors file or a hub id.

    dtype: "auto" keeps the weights as stored, or "float32", "bfloat16", "float16". device: "auto", "cpu", "cuda".
    cache_tokens: tokens that the KV cache holds over all runs. threads: processor threads.
    kernels: "auto", "cpu" (Numba) or "reference" (torch, on any device). quantize: None, "int8" or "int4".
    cache_dtype: of the keys and values: "auto" is "float32"; "bfloat16" halves the cache's memory and rounds.
    prefill: "exact" keeps float32's accuracy throughout; "fast" takes bfloat16 products for four rows or more: prompts,
        and runs that decode together. A processor that has no such products stays exact, which is faster there.
    context: tokens that a run may have, instead of what the config states or its rope scaling reaches.
    note: is told, line by line, what takes long the first time; the lines are in `notes` too.
    """

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
            yield self.engine.output.reading(position, tokens[position], row, pieces)

    def _look_through(self, ids: list[int], top: int) -> Iterator[tuple[int, Look]]:
        for start, logits in self._all_logits(ids):
            following: list[int | None] = [*ids[start + 1 : start + 1 + len(logits)]]
            following += [None] * (len(logits) - len(following))
            with self.engine.lock:
                found = self.model.kernels.topk_lse(logits, [top] * len(logits))
            yield from enumerate(look(logits, top, following, found), start)

    def _all_logits(self, ids: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """(first position, (rows, vocab) float32) over all positions, on pages that are let go at the end."""
        sequence = self.engine.open(ids, self.engine.check(SamplingParams()))
        try:
            yield from self.engine.logit_blocks(sequence)
        finally:
            self.engine.release(sequence)

    def score(self, prompt: Prompt, continuation: Prompt | None = None) -> Score:
        """Log-probability of every token given those before it, and the perplexity; with a `continuation`, of it alone.

        Two texts are joined before they are cut into tokens. The prompt's are those that it has alone, too: a token
        that lies across the border belongs to the continuation.
        """
        ids, first = (self.encode(prompt), 0) if continuation is None else self._joined(prompt, continuation)
        rows = [row.actual for _, row in self._look_through(ids, 1) if row.actual is not None]
        return Score(
            tokens=[self.tokenizer.token(token) for token in ids[first:]],
            logprobs=[None, *(row.logprob for row in rows)][first:],
            ranks=[None, *(row.rank for row in rows)][first:],
        )

    def _joined(self, prompt: Prompt, continuation: Prompt) -> tuple[list[int], int]:
        """The ids of both, and the place where the continuation begins."""
        before = self.encode(prompt)
        if isinstance(prompt, str) and isinstance(continuation, str):
            ids = self.encode(prompt + continuation)
        else:
            ids = self.encode(before + self.continuation_ids(continuation, "continuation"))
        first = common_length(before, ids)
        if first == len(ids):
            raise PromptError("the continuation is empty: it adds no token to the prompt", param="continuation")
        if first == 0:
            message = f"joined, prompt and continuation begin with the one token {self.tokenizer.token(ids[0]).text!r}"
            raise PromptError(message, param="prompt", hint="a token of the prompt must stand before the continuation")
        return ids, first

    def logits(self, prompt: Prompt) -> torch.Tensor:
        """The raw matter: (tokens, vocab) float32, the scores of every next token after every position."""
        return torch.cat([logits for _, logits in self._all_logits(self.encode(prompt))])

    # Runs.

    def start(self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[Options]) -> Run:
        """A run: the prompt is processed, no token is chosen yet. `options` are SamplingParams' fields."""
        params = _params(params, options)
        if params.n != 1:
            raise BadRequest(f"`n` is {params.n}; `start` makes one run: use fork, or generate", param="n")
        return self.start_run(self.encode(prompt), params, seed=params.seed, choice=0)

    def start_run(self, ids: list[int], params: SamplingParams, *, seed: int | None, choice: int) -> Run:
        """The same from ids, with the dice given; a run resumed so goes on as if it had never stopped."""
        run = self.open_run(ids, params, seed=seed, choice=choice)
        run.prefill()
        return run

    def open_run(self, ids: list[int], params: SamplingParams, *, seed: int | None, choice: int = 0) -> Run:
        """A run of which nothing is computed yet."""
        if seed is not None and seed != params.seed:
            params = params.replace(seed=seed)
        return Run.open(self, self.encode(ids), self.engine.check(params), choice=choice)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[Options]
    ) -> Iterator[Step]:
        """The steps of a run, as they come."""
        return iter(self.start(prompt, params, **options))

    @overload  # a text is an iterable of texts as well, and is one prompt
    def generate(  # type: ignore[overload-overlap]
        self, prompts: Prompt, params: SamplingParams | None = None, **options: Unpack[Options]
    ) -> Completion: ...
    @overload
    def generate(
        self, prompts: Prompt, params: SamplingParams | None = None, *, n: int, **options: Unpack[Options]
    ) -> list[Completion]: ...
    @overload
    def generate(
        self, prompts: Iterable[Prompt], params: SamplingParams | None = None, *, n: int = 1, **options: Unpack[Options]
    ) -> list[Completion]: ...
    def generate(
        self, prompts: Prompt | Iterable[Prompt], params: SamplingParams | None = None, **options: Any
    ) -> Completion | list[Completion]:
        """Run to the end: one Completion, or for a list of prompts or n > 1 a flat list, prompt by prompt.

        `options` are SamplingParams' fields, and go before those of `params`. With `n` among them the answer is always
        a list; an `n` above 1 inside `params` makes one too, which a type checker cannot see.
        """
        return self._generate(prompts, params, options)

    def _generate(
        self, prompts: object, params: SamplingParams | None, options: dict[str, Any]
    ) -> Completion | list[Completion]:
        settings = self.engine.check(_params(params, options))
        listed, many = as_prompts(prompts)
        names = [f"prompts[{place}]" if many else "prompt" for place in range(len(listed))]
        encoded = [self._encode(prompt, name) for prompt, name in zip(listed, names, strict=True)]
        completions = self._complete(encoded, settings)
        return completions if many or "n" in options or settings.params.n > 1 else completions[0]

    def _complete(self, prompts: list[list[int]], settings: Settings) -> list[Completion]:
        """All choices of all prompts, in as many passes as they need together; the first failure ends them all."""
        driver = self.driver
        collectors = [Collector(ids, settings.params.n) for ids in prompts]
        handles: list[RequestHandle] = []
        try:
            for ids, collector in zip(prompts, collectors, strict=True):
                handles.append(driver.submit(ids, settings, collector))
            driver.run(lambda: all(handle.is_done for handle in handles) or any(each.error for each in collectors))
        finally:
            for handle in handles:
                if not handle.is_done:
                    handle.cancel()
        for error in (collector.error for collector in collectors):
            if error is not None:
                raise error
        return [completion for collector in collectors for completion in collector.completions()]

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, **options: Unpack[Options]
    ) -> Completion: ...
    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, n: int, **options: Unpack[Options]
    ) -> list[Completion]: ...
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, **options: Any
    ) -> Completion | list[Completion]:
        """`generate` through the checkpoint's chat template; a text is one message of the user's."""
        return self._generate(self.chat_ids(messages), params, options)


def _params(params: SamplingParams | None, options: Mapping[str, Any]) -> SamplingParams:
    if params is None:
        return SamplingParams(**options)
    if not isinstance(params, SamplingParams):
        hint = "or its fields as keywords: max_tokens=4"
        raise BadRequest(f"`params` is a {type(params).__name__}; it must be SamplingParams", param="params", hint=hint)
    return params.replace(**options) if options else params
