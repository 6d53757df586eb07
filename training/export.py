"""Write a checkpoint as an ordinary Hugging Face folder: `python -m training.export`."""

import argparse
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.model import Shape
from training.tokenizer import write_json

DEFAULT_OUT: Final = Path("byhand/assets/tiny")
GENERATION: Final[dict[str, object]] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 0.8,
    "top_p": 0.95,
}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Everything a training run saved."""
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def export(weights: dict[str, Tensor], shape: Shape, out: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors in bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    rounded = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    # Written beside and renamed, so that a reader never meets half a file.
    beside = out / "model.safetensors.part"
    save_file(rounded, beside, metadata={"format": "pt"})
    beside.chmod(0o644)
    beside.replace(out / "model.safetensors")
    write_json(out / "config.json", shape.config())
    write_json(out / "generation_config.json", GENERATION)


def main() -> None:
    """Export one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    args = parser.parse_args()
    saved = load_checkpoint(args.checkpoint)
    export(saved["model"], Shape(**saved["shape"]), args.out)
    print(f"step {saved['step']}, {saved['tokens']:,} tokens -> {args.out}")


if __name__ == "__main__":
    main()
