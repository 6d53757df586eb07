"""ONNX Runtime GenAI's generator loop on the processor."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from byhand import children
from byhand.bench.checkpoints import count_read
from byhand.bench.engines import Setting, Tokens

# Bytes a weight; the quantised ones have a float32 scale for every 32.
BYTES = {"fp32": 4.0, "int8": 1 + 4 / 32, "int4": 0.5 + 4 / 32}


class Adapter:
    """One model; a generator for each burst."""

    def __init__(self, setting: Setting) -> None:
        import numpy
        import onnxruntime_genai

        self.array: Any = numpy.array
        self.api = onnxruntime_genai
        config = onnxruntime_genai.Config(str(setting.converted))
        session = {"session_options": {"intra_op_num_threads": setting.threads}}
        config.overlay(json.dumps({"model": {"decoder": session}}))
        self.model = onnxruntime_genai.Model(config)
        self._bytes = int(count_read(setting.folder) * BYTES[setting.form])

    def generate(self, prompts: list[list[int]], new: int) -> Tokens:
        """Read the prompts, then step by step."""
        length = len(prompts[0]) + new
        params = self.api.GeneratorParams(self.model)
        params.set_search_options(
            max_length=length, min_length=length, batch_size=len(prompts), do_sample=False, num_beams=1
        )
        generator = self.api.Generator(self.model, params)
        generator.append_tokens(self.array(prompts if len(prompts) > 1 else prompts[0], dtype="int32"))
        ids: list[list[int]] = [[] for _ in prompts]
        stamps = []
        for _ in range(new):
            generator.generate_next_token()
            for run, token in zip(ids, generator.get_next_tokens(), strict=True):
                run.append(int(token))
            stamps.append(perf_counter())
        return Tokens(ids, stamps)

    def weight_bytes(self) -> int:
        """Numbers that a step reads, with their scales."""
        return self._bytes

    def version(self) -> str:
        """onnxruntime-genai's."""
        return f"onnxruntime-genai {self.api.__version__}"


def convert(folder: Path, form: str, target: Path) -> None:
    """Build by onnxruntime-genai's own builder; 8-bit activations in the quantised forms."""
    from benchmarks.peers.export import call

    extra = ["--extra_options", "block_size=32", "accuracy_level=4", "op_types_to_quantize=MatMul"]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ("-i", str(folder), "-o", str(target), "-p", form, "-e", "cpu", "-c", scratch)
        more = [] if form == "fp32" else extra
        call(children.module("onnxruntime_genai.models.builder", *arguments, *more))
