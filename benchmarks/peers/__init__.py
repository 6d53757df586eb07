"""byhand's peers, as `byhand bench` runs them from a checkout: what each is called, has, and needs to be installed.

Each has a file here with a class `Adapter`, and `convert` where it needs files of its own. Nothing here imports them:
they are opened in processes of their own, by interpreters that have them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence

from byhand import children
from byhand.bench.engines import Peer
from byhand.bench.results import has_package
from byhand.errors import BadRequest

INSTALLED, NONE = "installed", "none"
HOW_TO_INSTALL = "in byhand's own folder, pip install '.[peers]' brings them"
_LLAMAS = ("llama",)

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "transformers",
            f"{__name__}.huggingface",
            "transformers",
            {"fp32": ("fp32",), "bf16": ("bf16",)},
            {"fp32": "float32 throughout", "bf16": "bfloat16 throughout"},
            converts=False,
        ),
        Peer(
            "llama.cpp",
            f"{__name__}.llama_cpp",
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
            f"{__name__}.openvino",
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
            f"{__name__}.onnxruntime",
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
            f"{__name__}.ctranslate2",
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


def asked(peers: Sequence[str], pythons: Mapping[str, str], tell: Callable[[str], None]) -> list[Peer]:
    """The peers to run: those that are installed, and a sentence about the others; or those named."""
    names = list(PEERS) if INSTALLED in peers else list(dict.fromkeys(peers))
    for name in names:
        if name not in PEERS:
            known = ", ".join((INSTALLED, NONE, *PEERS))
            raise BadRequest(f"--peers is {name!r}; it must be one of {known}", param="--peers")
    missing = [name for name in names if not is_installed(PEERS[name], pythons.get(name) or pythons.get("peers"))]
    if missing and INSTALLED not in peers:
        raise BadRequest(f"{', '.join(missing)}: not installed", param="--peers", hint=HOW_TO_INSTALL)
    if missing:
        tell(f"not installed, so left out: {', '.join(missing)} ({HOW_TO_INSTALL})")
    return [PEERS[name] for name in names if name not in missing]


def is_installed(peer: Peer, python: str | None) -> bool:
    """Whether an interpreter (None: this one) has the peer's package."""
    if python is None:
        return has_package(peer.package)
    code = f"import importlib.metadata as m; m.version({peer.package!r})"
    try:
        command = children.code(code, interpreter=python)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError as error:
        raise BadRequest(f"--python: {python} cannot be run: {error.strerror}", param="--python") from error
