"""What a model costs in memory: nothing is held twice, and what is mapped from the file is not held at all.

Each case runs in a process of its own and reads its own anonymous memory (what no file stands behind) from /proc.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from byhand.bench import checkpoints
from byhand.bench.shapes import SHAPES, tensors_of
from byhand.cache.kv_cache import KVCache, LayerSpec
from byhand.formats import formats
from byhand.shards import Planned, write_shards
from tests.conftest import write_tokenizer

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's /proc")

MB = 1e6


def shape_of(hidden: int, inner: int, layers: int, vocab: int) -> dict[str, Any]:
    """A Llama's config.json."""
    heads = hidden // 64
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocab}
    return SHAPES["tiny"] | sizes | {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 64}


# `make test`: 14 million weights. `make campaign`: SmolLM2-135M's shape and vocabulary.
SMALL, LARGE = shape_of(512, 1536, 3, 8192), SHAPES["smol-135m"]

MEASURE = """
import ctypes, json, sys, threading, time
job = json.loads(sys.argv[1])

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

import byhand
from byhand.convert import quantize_checkpoint
from byhand.text import Tokenizer
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
if job["do"] == "tokenizer":
    kept = Tokenizer.open(job["folder"])
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # what reading its file has left over is no part of it
    if trim is not None:
        trim(0)
elif job["do"] == "write":
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


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """A random Llama in bfloat16, its head tied."""
    folder.mkdir()
    shapes = tensors_of(config).items()
    write_shards([Planned(name, torch.bfloat16, shape, numbers(shape)) for name, shape in shapes], folder)
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": []}))
    if config is LARGE:
        checkpoints.write_tokenizer(folder, config["vocab_size"], config["max_position_embeddings"])
    else:
        write_tokenizer(folder)


class Made:
    """A folder with a model, and what its parts weigh."""

    def __init__(self, place: Path, config: dict[str, Any]) -> None:
        self.folder = place / "model"
        write_model(self.folder, config)
        write_model(place / "warm", shape_of(64, 64, 1, 384))
        shapes = tensors_of(config).values()
        self.matrices = [shape for shape in shapes if len(shape) == 2]
        self.vectors = 4 * sum(shape[0] for shape in shapes if len(shape) == 1)
        self.specs = [LayerSpec(config["num_key_value_heads"], 64)] * config["num_hidden_layers"]
        self.is_large = config is LARGE

    @cached_property
    def tokenizer(self) -> int:
        """Its vocabulary in memory: half a hundred thousand pieces weigh more than all norms."""
        return measure("tokenizer", self.folder)["now"] if self.is_large else 0

    def weight_bytes(self, form: str) -> int:
        """All matrices in a form."""
        parts = (part for shape in self.matrices for part in formats()[form].parts((shape[0], shape[1])))
        return sum(part.shape[0] * part.shape[1] * getattr(torch, part.dtype).itemsize for part in parts)

    def cache_bytes(self, tokens: int) -> int:
        """So many tokens in float32, in whole pages, and the angles that are kept of their positions."""
        return KVCache(self.specs, 0).page_bytes * -(-tokens // 16) + 4 * 2 * 64 * (2 * tokens + 64)

    def allowed(self, held: int) -> float:
        """The bound over what is held. Only where that is large it needs no room for the work itself."""
        return 1.15 * (held + self.tokenizer) + (0 if self.is_large else WORK)


@pytest.fixture(
    scope="module", params=[pytest.param(SMALL, id="small"), pytest.param(LARGE, id="135m", marks=pytest.mark.full)]
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("memory"), request.param)


# Rows of logits, a pass's activations, buffers of the threads.
WORK = 12 * MB


def test_mapped_weights_are_not_held(made: Made) -> None:
    # A pass of 512 rows works in some 25 MB at the 135M shape, which so many tokens' keys and values outweigh.
    length = 6000 if made.is_large else 60
    found = measure("open", made.folder, cache_tokens=8192 if made.is_large else 1024, prompt=length)
    held = made.vectors + made.cache_bytes(length + 3)
    assert found["peak"] <= made.allowed(held), (found, held, made.tokenizer)
    assert found["peak"] - made.cache_bytes(length + 3) < made.weight_bytes("int8"), "the bound must be able to fail"


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_quantising_on_load_holds_the_result_and_a_block(made: Made, form: str) -> None:
    found = measure("open", made.folder, cache_tokens=64, options={"quantize": form})
    result = made.weight_bytes(form)
    assert found["peak"] <= made.allowed(result + made.vectors + made.cache_bytes(16)), (found, result, made.tokenizer)
    assert found["peak"] <= 1.3 * result or not made.is_large, (found, result)
    assert found["now"] >= 0.9 * result


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_writing_a_quantised_folder_and_opening_it_hold_almost_nothing(made: Made, form: str, tmp_path: Path) -> None:
    target = tmp_path / "new"
    found = measure("write", made.folder, form=form, target=target)
    largest = max(shape[0] * shape[1] for shape in made.matrices)
    assert found["peak"] <= largest // 8 + WORK, found
    found = measure("open", target, cache_tokens=64, warm=made.folder.parent / "warm")
    assert found["peak"] <= 1.15 * (made.vectors + made.cache_bytes(32) + made.tokenizer) + WORK, found


def test_a_conversion_of_dtype_holds_the_weights_once(made: Made) -> None:
    found = measure("open", made.folder, cache_tokens=64, options={"dtype": "float32"})
    floats = 4 * sum(shape[0] * shape[1] for shape in made.matrices)
    assert 0.9 * floats <= found["peak"] <= made.allowed(floats), (found, floats)
