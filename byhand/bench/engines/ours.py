"""byhand itself, through LLM and Run.step and, for a batch, the loop's own step; sampling included."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

from byhand.bench.engines import Setting, Tokens

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class Adapter:
    """One LLM. The form is a precision; options are LLM's own (prefill="fast", ...)."""

    def __init__(self, setting: Setting) -> None:
        from byhand.llm import LLM

        kind = {"dtype": DTYPES[setting.form]} if setting.form in DTYPES else {}  # files are quantised already
        options: dict[str, Any] = {
            "threads": setting.threads,
            # Pages are filled one by one: a run may leave its last one half empty.
            "cache_tokens": setting.batch * (setting.length + 32),
            **kind,
            **setting.options,
        }
        self.llm = LLM(setting.files or setting.folder, **options)
        self.runs: list[Any] = []

    def generate(self, prompts: list[list[int]], new: int) -> Tokens:
        """One run alone, or many in one batch."""
        self._forget()
        self._start(prompts, new)
        return self._steps(new)

    def begin(self, prompts: list[list[int]]) -> Tokens:
        """Read the prompts; one new token each."""
        self._forget()
        self._start(prompts, self.llm.context_length)
        return self._steps(1)

    def go_on(self, new: int) -> Tokens:
        """`new` more tokens for each."""
        return self._steps(new)

    def _start(self, prompts: list[list[int]], new: int) -> None:
        from byhand.sampling.params import SamplingParams

        params = SamplingParams(max_tokens=new, ignore_eos=True, seed=0)
        self.runs = [self.llm.open_run(ids, params, seed=0) for ids in prompts]

    def _steps(self, new: int) -> Tokens:
        """Until every run has `new` tokens more; a stamp for each step that gave tokens."""
        stamps: list[float] = []
        if len(self.runs) == 1:
            for _ in range(new):
                self.runs[0].step()
                stamps.append(perf_counter())
        else:
            self._together(new, stamps)
        return Tokens([run.ids[-new:] for run in self.runs], stamps)

    def _together(self, new: int, stamps: list[float]) -> None:
        """All runs in the same steps of the loop."""
        for run in self.runs:
            run._handle.go(new).result()
        goal: int = sum(run._sequence.generated + new for run in self.runs)
        given = goal - new * len(self.runs)

        def is_over() -> bool:
            nonlocal given
            now: int = sum(run._sequence.generated for run in self.runs)
            if now > given:
                stamps.append(perf_counter())
            given = now
            return given >= goal

        self.llm.driver.run(is_over)

    def _forget(self) -> None:
        """Let go of the last burst's pages, and of what they hold."""
        for run in self.runs:
            self.llm.engine.release(run._sequence)
        self.runs = []
        self.llm.engine.cache.clear()

    def forks(self, prompts: list[list[int]], new: int, shared: bool) -> Tokens:
        """As many runs as prompts: forks of the first, its prompt read once, or each with a prompt of its own."""
        self._forget()
        self._start(prompts[:1] if shared else prompts, new)
        if shared:
            first = self.runs[0]
            first.prefill()
            self.runs += [first.fork(seed=number) for number in range(1, len(prompts))]
        return self._steps(new)

    def again(self, prompts: list[list[int]], new: int) -> Tokens:
        """The same prompts once more, on whatever pages are still known."""
        for run in self.runs:
            self.llm.engine.release(run._sequence)
        self._start(prompts, new)
        return self._steps(new)

    def weight_bytes(self) -> int:
        """Bytes of every matrix that a step reads whole."""
        from byhand.bench.engines.held import matrices

        return sum(weight.nbytes for weight in matrices(self.llm.model).values())

    def cache_token_bytes(self) -> int:
        """Bytes of keys and values that a step reads for every token before it."""
        from byhand.cache.kv_cache import PAGE_SIZE

        return self.llm.engine.cache.page_bytes // PAGE_SIZE

    def memory(self) -> dict[str, int]:
        """Bytes of tensors that no file backs, and of the cache's pages that were ever written."""
        from byhand.bench.engines.held import held_bytes

        cache = self.llm.engine.cache
        touched = sum(
            group.page_bytes
            * max((page + 1 for run in self.runs for page in run._sequence.page_tables[number]), default=0)
            for number, group in enumerate(cache.groups)
        )
        return {"held": held_bytes(self.llm.model), "cache": touched}

    def version(self) -> str:
        """byhand's own, with its options."""
        from byhand import __version__

        cached = str(self.llm.engine.cache.dtype).removeprefix("torch.")
        return f"byhand {__version__}, {self.llm.model.dtype} weights, cache in {cached}"


def convert(folder: Path, form: str, target: Path) -> None:
    """Quantise beforehand, as `byhand quantize` does."""
    from byhand.convert import quantize_checkpoint

    quantize_checkpoint(folder, target, form)
