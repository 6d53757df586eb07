"""llama.cpp through llama-cpp-python's low-level calls: llama_decode and its greedy sampler."""

from __future__ import annotations

import ctypes
from pathlib import Path
from time import perf_counter
from typing import Any

from byhand.bench.engines import Setting, Tokens

ROWS = 2048  # of one llama_decode


class Adapter:
    """One model and one context with room for the whole batch."""

    def __init__(self, setting: Setting) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # held: C keeps only its address
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        path = str(setting.converted / "model.gguf").encode()
        self.model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {setting.files}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = setting.batch * -(-setting.length // 256) * 256
        options.n_batch, options.n_ubatch = ROWS, 512
        options.n_seq_max = setting.batch
        options.n_threads = options.n_threads_batch = setting.threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context of {options.n_ctx} tokens")
        self.sampler = llama_cpp.llama_sampler_init_greedy()
        self.batch = llama_cpp.llama_batch_init(ROWS, 0, 1)
        self.ids: list[list[int]] = []
        self.position = 0

    def generate(self, prompts: list[list[int]], new: int) -> Tokens:
        """Read the prompts, then a token for each at a time."""
        first = self.begin(prompts)
        rest = self.go_on(new - 1)
        return Tokens(self.ids, first.stamps + rest.stamps)

    def begin(self, prompts: list[list[int]]) -> Tokens:
        """Read the prompts, run by run; one new token each."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        self.ids, self.position = [[] for _ in prompts], len(prompts[0])
        last = self.position - 1
        rows = [(token, at, run, at == last) for run, ids in enumerate(prompts) for at, token in enumerate(ids)]
        for start in range(0, len(rows), ROWS):
            self._read(rows[start : start + ROWS])
        return Tokens(self.ids, [perf_counter()])

    def go_on(self, new: int) -> Tokens:
        """`new` more tokens for each."""
        stamps = []
        for _ in range(new):
            self._read([(ids[-1], self.position, run, True) for run, ids in enumerate(self.ids)])
            self.position += 1
            stamps.append(perf_counter())
        return Tokens(self.ids, stamps)

    def _read(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """One pass over rows of (token, position, run, whether the next token is wanted); it is appended."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for row, (token, position, run, wanted) in enumerate(rows):
            batch.token[row], batch.pos[row], batch.logits[row] = token, position, wanted
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, run
        if code := self.api.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gives {code}")
        for row, (_, _, run, wanted) in enumerate(rows):
            if wanted:
                self.ids[run].append(self.api.llama_sampler_sample(self.sampler, self.context, row))

    def weight_bytes(self) -> int:
        """llama.cpp's own count."""
        return int(self.api.llama_model_size(self.model))

    def version(self) -> str:
        """llama-cpp-python's, and what its build uses of the processor."""
        system = self.api.llama_print_system_info().decode()  # "CPU : SSE3 = 1 | SSSE3 = 1 | ..."
        facts = (fact.partition("=") for fact in system.partition(":")[2].split("|"))
        used = " ".join(name.strip() for name, _, value in facts if value.strip() == "1")
        return f"llama-cpp-python {self.api.__version__} ({used})"


def convert(folder: Path, form: str, target: Path) -> None:
    """Write model.gguf; 8 and 4 bits by llama.cpp's own quantiser."""
    from benchmarks.peers.gguf_file import write_gguf

    plain = {"f32": "f32", "bf16": "bf16"}.get(form)
    if plain is not None:
        write_gguf(folder, plain, target / "model.gguf")
        return
    import llama_cpp

    source = target / "source.gguf"
    write_gguf(folder, "bf16", source)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{form.upper()}")
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target / "model.gguf").encode(), ctypes.byref(options)
    )
    source.unlink()
    if code:
        raise RuntimeError(f"llama_model_quantize gives {code}")
