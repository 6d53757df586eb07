"""OpenVINO GenAI's LLMPipeline on the processor, with the continuous batching that it takes by default."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

from byhand import children
from byhand.bench.checkpoints import count_read
from byhand.bench.engines import Setting, Tokens

# Of the exported weights; float ones are float16 on disk and in memory, whatever is computed with.
WEIGHTS = {"f32": "fp16", "bf16": "fp16", "int8": "int8", "int4": "int4"}


class Adapter:
    """One pipeline. f32 and bf16 are hints of what to compute with; the quantised forms choose for themselves."""

    def __init__(self, setting: Setting) -> None:
        import numpy
        import openvino
        import openvino_genai

        self.array: Any = numpy.array
        self.openvino, self.api = openvino, openvino_genai
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": setting.threads}
        if setting.form in ("f32", "bf16"):
            properties["INFERENCE_PRECISION_HINT"] = setting.form
        self.pipeline = openvino_genai.LLMPipeline(str(setting.converted), "CPU", **properties)
        size = (setting.converted / "openvino_model.bin").stat().st_size
        self._bytes = 2 * count_read(setting.folder) if WEIGHTS[setting.form] == "fp16" else size

    def generate(self, prompts: list[list[int]], new: int) -> Tokens:
        """One call. A batch gives no times but its end: the pipeline streams single runs only."""
        config = self.api.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = new, True
        config.do_sample, config.num_beams = False, 1
        ids = self.array(prompts, dtype="int64")
        inputs = self.api.TokenizedInputs(self.openvino.Tensor(ids), self.openvino.Tensor(ids * 0 + 1))
        stamps: list[float] = []
        clock = _clock(self.api, stamps) if len(prompts) == 1 else None
        result = self.pipeline.generate(inputs, config, clock)
        return Tokens([list(tokens) for tokens in result.tokens], stamps or [perf_counter()])

    def weight_bytes(self) -> int:
        """Two bytes a number, or the file of quantised weights."""
        return self._bytes

    def version(self) -> str:
        """openvino-genai's."""
        return f"openvino-genai {self.api.__version__}"


def _clock(api: Any, stamps: list[float]) -> Any:
    class Clock(api.StreamerBase):  # type: ignore[misc]
        """Writes down when each token comes."""

        def write(self, token: Any) -> Any:
            stamps.extend([perf_counter()] * (len(token) if isinstance(token, list | tuple) else 1))
            return api.StreamingStatus.RUNNING

        def end(self) -> None:
            """Nothing is held back."""

    return Clock()


def convert(folder: Path, form: str, target: Path) -> None:
    """Export by optimum-intel, which often needs an environment of its own (--python openvino-convert=…)."""
    from benchmarks.peers.export import call

    weights = WEIGHTS[form]
    extra = ["--group-size", "64", "--ratio", "1.0", "--sym"] if weights == "int4" else []
    start = "from optimum.commands.optimum_cli import main; main()"
    task = ["--task", "text-generation-with-past", "--weight-format", weights]
    call(children.code(start, "export", "openvino", "-m", str(folder), *task, *extra, str(target)))
