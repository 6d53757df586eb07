"""transformers' generate, eager, with torch's scaled dot-product attention."""

from __future__ import annotations

from importlib import import_module
from time import perf_counter
from typing import Any

from byhand.bench.checkpoints import count_read
from byhand.bench.engines import Setting, Tokens

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class Adapter:
    """One model in one dtype, weights and activations alike."""

    def __init__(self, setting: Setting) -> None:
        import torch

        transformers: Any = import_module("transformers")
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(setting.threads)
        dtype = getattr(torch, DTYPES[setting.form])
        self.torch: Any = torch
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(setting.folder, dtype=dtype)
        self.model.eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        self._bytes = count_read(setting.folder) * int(dtype.itemsize)
        self._version = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def generate(self, prompts: list[list[int]], new: int) -> Tokens:
        """One call; a streamer keeps the time of every step."""
        ids, clock = self.torch.tensor(prompts), _clock()
        with self.torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=self.torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                streamer=clock,
            )
        # The first that a streamer is given is the prompt.
        return Tokens(out[:, ids.shape[1] :].tolist(), clock.stamps[1:])

    def weight_bytes(self) -> int:
        """Every number that a step reads, in the dtype of the computation."""
        return self._bytes

    def version(self) -> str:
        """transformers' and torch's."""
        return self._version


def _clock() -> Any:
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        """Writes down when each step's tokens come."""

        def __init__(self) -> None:
            self.stamps: list[float] = []

        def put(self, value: Any) -> None:
            self.stamps.append(perf_counter())

        def end(self) -> None:
            """Nothing is held back."""

    return Clock()
