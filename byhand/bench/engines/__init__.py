"""The engines that can be measured: what each is called, which precisions it has, and what must be installed for it.

Each has a file here with a class `Adapter`, and `convert` where it needs files of its own. Nothing here imports them:
they are opened in processes of their own, by interpreters that have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

PRECISIONS = ("fp32", "bf16", "int8", "int4")
OURS = "byhand"


@dataclass(frozen=True, slots=True)
class Setting:
    """What an adapter is opened with. `files` is what `convert` wrote, `folder` the checkpoint it was made from."""

    folder: Path
    form: str
    threads: int
    batch: int
    length: int  # tokens of the longest run
    files: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def converted(self) -> Path:
        """`files`, where there must be some."""
        assert self.files is not None
        return self.files


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a burst made: the new ids of each prompt, and the clock after each step (perf_counter)."""

    ids: list[list[int]]
    stamps: list[float]


class Engine(Protocol):
    """What every adapter offers. With `begin(prompts)` and `go_on(new)` a long context is read once for many bursts."""

    def __init__(self, setting: Setting) -> None: ...

    def generate(self, prompts: list[list[int]], new: int) -> Tokens:
        """Greedily, end-of-sequence ignored: exactly `new` tokens for each of the prompts, which are equally long."""

    def weight_bytes(self) -> int:
        """Bytes of weights that one decoding step reads."""

    def version(self) -> str:
        """Name and version of what runs."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine as the benchmark knows it. `forms`: its own names of what it runs for each precision."""

    name: str
    module: str
    package: str  # what pip calls it
    forms: Mapping[str, tuple[str, ...]]
    runs: Mapping[str, str]  # what a form really computes with
    families: tuple[str, ...] = ()  # model types it knows; none named: any
    converts: bool = True
    converter: str = ""  # what must be installed to convert for it, beside the package
    files: Mapping[str, str] = field(default_factory=dict)  # the name of a form's files, where forms share them

    def contestants(self, precision: str, kind: str = "decode") -> tuple[str, ...]:
        """The forms to run for a precision. Beside bf16: fp32 too for prefills, and for batches where no bf16 is."""
        forms = self.forms.get(precision, ())
        wants_both = precision == "bf16" and (kind == "prefill" or (kind == "batch" and not forms))
        return (*forms, *self.forms.get("fp32", ())) if wants_both else forms


_LLAMAS = ("llama",)

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "transformers",
            "huggingface",
            "transformers",
            {"fp32": ("fp32",), "bf16": ("bf16",)},
            {"fp32": "float32 throughout", "bf16": "bfloat16 throughout"},
            converts=False,
        ),
        Peer(
            "llama.cpp",
            "llama_cpp",
            "llama-cpp-python",
            {"fp32": ("f32",), "bf16": ("bf16",), "int8": ("q8_0",), "int4": ("q4_0", "q4_k_m")},
            {
                "f32": "float32",
                "bf16": "bfloat16 weights and activations in products, float32 sums",
                "q8_0": "8-bit weights in groups of 32, activations in 8 bits",
                "q4_0": "4-bit weights in groups of 32 (the head in 6 or 8 bits), activations in 8 bits",
                "q4_k_m": "4- and 6-bit weights in groups of 256 (5 and 8 where rows do not fit), activations in 8",
            },
            families=_LLAMAS,
            converter="gguf",
        ),
        Peer(
            "openvino",
            "openvino",
            "openvino-genai",
            {"fp32": ("f32",), "bf16": ("bf16",), "int8": ("int8",), "int4": ("int4",)},
            {
                "f32": "float32 products over float16 weights",
                "bf16": "bfloat16 products over float16 weights",
                "int8": "8-bit weights, products as it chooses",
                "int4": "4-bit weights in groups of 64, products as it chooses",
            },
            converter="optimum-intel",
            files={"f32": "fp16", "bf16": "fp16"},
        ),
        Peer(
            "onnxruntime",
            "onnxruntime",
            "onnxruntime-genai",
            {"fp32": ("fp32",), "int8": ("int8",), "int4": ("int4",)},
            {
                "fp32": "float32",
                "int8": "8-bit weights in groups of 32, activations in 8 bits",
                "int4": "4-bit weights in groups of 32, activations in 8 bits",
            },
            families=_LLAMAS,
            converter="onnx-ir and transformers",
        ),
        Peer(
            "ctranslate2",
            "ctranslate2",
            "ctranslate2",
            {"fp32": ("float32",), "int8": ("int8",)},
            {
                "float32": "float32, llama3's rotary scaling dropped",
                "int8": "8-bit weights by row, activations in 8 bits, llama3's rotary scaling dropped",
            },
            converter="transformers",
        ),
    )
}
