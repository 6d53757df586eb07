"""What a model costs in memory: nothing is held twice, and what is mapped from the file is not held at all.

Each case runs in a process of its own and reads its own anonymous memory (what no file stands behind) from /proc.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from byhand.kv_cache import KVCache, LayerSpec
from byhand.shards import Planned, write_shards
from byhand.weights import parts_of
from tests.conftest import write_tokenizer

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's /proc")

MB = 1e6
# `make test` and `make campaign`: hidden, inner, layers, vocabulary. 14 and 267 million weights.
SMALL = (512, 1536, 3, 8192)
LARGE = (1024, 4096, 12, 64000)

MEASURE = """
import json, sys, threading, time
job = json.loads(sys.argv[1])

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

import byhand
from byhand.convert import quantize_checkpoint
from pathlib import Path
# The cost of the imports, of the threads and of the kernels' code: a model so small that it weighs nothing.
warm = byhand.LLM(job["warm"], cache_tokens=256, **job["options"])
warm.start([1] * 70).step()
warm.start([1]).step()
warm.close()
base = peak = anonymous()
done = False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.01)

thread = threading.Thread(target=watch)
thread.start()
if job["do"] == "write":
    quantize_checkpoint(job["folder"], Path(job["target"]), job["form"])
else:
    llm = byhand.LLM(job["folder"], cache_tokens=job["cache_tokens"], **job["options"])
    run = llm.start([1] * job["prompt"])
    for _ in range(3):
        run.step()
done = True
thread.join()
print(json.dumps({"peak": peak - base, "now": anonymous() - base}))
"""


def measure(do: str, folder: Path, **job: Any) -> dict[str, int]:
    """Bytes of anonymous memory over what the imports cost: at the worst moment, and at the end."""
    whole = {"do": do, "folder": str(folder), "warm": str(folder.parent / "warm"), "options": {}, "prompt": 8, **job}
    run = [sys.executable, "-c", MEASURE, json.dumps(whole, default=str)]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def numbers(shape: tuple[int, ...]) -> Planned | Any:
    return lambda: (torch.randn(shape) * 0.02).bfloat16().split(1024)


def write_model(folder: Path, size: tuple[int, int, int, int]) -> dict[str, tuple[int, ...]]:
    """A random Llama in bfloat16, its head tied; the shapes of its matrices."""
    hidden, inner, layers, vocab = size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
    folder.mkdir()
    write_shards([Planned(name, torch.bfloat16, shape, numbers(shape)) for name, shape in shapes.items()], folder)
    config = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 2048, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": [],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return {name: shape for name, shape in shapes.items() if len(shape) == 2}


class Made:
    """A folder with a model, and what its parts weigh."""

    def __init__(self, place: Path, size: tuple[int, int, int, int]) -> None:
        self.folder = place / "model"
        self.matrices = write_model(self.folder, size)
        write_model(place / "warm", (64, 64, 1, 384))
        self.vectors = 4 * sum(size[0] for _ in range(2 * size[2] + 1))
        self.specs = [LayerSpec(size[0] // 64, 64)] * size[2]

    def weight_bytes(self, form: str) -> int:
        """All matrices in a form."""
        parts = (part for shape in self.matrices.values() for part in parts_of(form, (shape[0], shape[1])))
        return sum(part.shape[0] * part.shape[1] * part.dtype.itemsize for part in parts)

    def cache_bytes(self, tokens: int) -> int:
        """So many tokens in float32, in whole pages."""
        return KVCache(self.specs, 0).page_bytes * -(-tokens // 16)


@pytest.fixture(
    scope="module", params=[pytest.param(SMALL, id="small"), pytest.param(LARGE, id="large", marks=pytest.mark.full)]
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("memory"), request.param)


# Rows of logits, a pass's activations, buffers of the threads.
WORK = 12 * MB


def test_mapped_weights_are_not_held(made: Made) -> None:
    found = measure("open", made.folder, cache_tokens=1024, prompt=60)
    held = made.vectors + made.cache_bytes(64)
    assert found["peak"] <= 1.15 * held + WORK, found
    assert found["peak"] < made.weight_bytes("int8"), "the bound must be able to fail"


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_quantising_on_load_holds_the_result_and_a_block(made: Made, form: str) -> None:
    found = measure("open", made.folder, cache_tokens=64, options={"quantize": form})
    result = made.weight_bytes(form)
    assert found["peak"] <= 1.15 * (result + made.vectors) + WORK, (found, result)
    assert found["now"] >= 0.9 * result


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_writing_a_quantised_folder_and_opening_it_hold_almost_nothing(made: Made, form: str, tmp_path: Path) -> None:
    target = tmp_path / "new"
    found = measure("write", made.folder, form=form, target=target)
    largest = max(shape[0] * shape[1] for shape in made.matrices.values())
    assert found["peak"] <= largest // 8 + WORK, found
    found = measure("open", target, cache_tokens=64, warm=made.folder.parent / "warm")
    assert found["peak"] <= 1.15 * (made.vectors + made.cache_bytes(32)) + WORK, found


def test_a_conversion_of_dtype_holds_the_weights_once(made: Made) -> None:
    found = measure("open", made.folder, cache_tokens=64, options={"dtype": "float32"})
    floats = 4 * sum(shape[0] * shape[1] for shape in made.matrices.values())
    assert 0.9 * floats <= found["peak"] <= 1.15 * floats + WORK, (found, floats)
