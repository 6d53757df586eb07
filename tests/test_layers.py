"""Layers put together from objects: what they show, that looking changes nothing, and what each object does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from byhand.cache.kv_cache import Batch, KVCache
from byhand.checkpoint import open_checkpoint
from byhand.kernels import Kernels, Rotary, backend
from byhand.kernels.cpu import Cpu
from byhand.layers import Attention, Block, Decoder, GatedMLP, Head, Linear, MergedLinear, RMSNorm
from byhand.layers.decoder import parts
from byhand.layers.rope import RopeParameters, RotaryEmbedding
from byhand.models import build
from byhand.weights import StoredTensor, Weights
from tests.checkpoints import CONFIGS, judge, tiny
from tests.test_blocks import PASSES, batch_of
from tests.tiny_configs import TINY


def opened(folder: Path, kernels: Kernels) -> Decoder:
    model = build(open_checkpoint(folder), kernels)
    assert isinstance(model, Decoder)
    return model


def forward(model: Decoder, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model.forward(batch_of([ids], [len(ids)]), KVCache(model.layer_specs, 32)).clone()


class Seen:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.activations: dict[str, torch.Tensor] = {}
        self.order: list[str] = []

    def __call__(self, name: str, x: torch.Tensor) -> None:
        self.activations[name] = x.clone()
        self.order.append(name)


# By family: the norms through which attention's and the MLP's `out` go before they are added.
NORMS_BEHIND = {"olmo2": ("post_attention_layernorm", "post_feedforward_layernorm")}
IDS = [3, 5, 7, 11, 2, 9]
EACH = pytest.mark.parametrize(("family", "variant"), CONFIGS)


@EACH
@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
def test_looking_changes_no_bit(family: str, variant: str, backend_name: str, tmp_path: Path) -> None:
    model = opened(tiny(tmp_path, family, variant), backend(backend_name))
    found: list[list[torch.Tensor]] = []
    for observer in (None, Seen(), None):
        model.observe(observer)
        cache = KVCache(model.layer_specs, 32)
        with torch.inference_mode():
            found.append([model.forward(batch_of(*rows), cache).clone() for rows in PASSES])
    for plain, seen, again in zip(*found, strict=True):
        assert torch.equal(plain, seen)
        assert torch.equal(plain, again)


@EACH
def test_every_name_is_told_once_a_pass(family: str, variant: str, tmp_path: Path) -> None:
    model, seen = opened(tiny(tmp_path, family, variant), Cpu()), Seen()
    cache = KVCache(model.layer_specs, 32)
    for passes in range(1, 4):
        model.observe(seen)
        with torch.inference_mode():
            model.forward(batch_of([IDS], [len(IDS)]), cache)
            model.observe(None)
            model.forward(batch_of([IDS], [len(IDS)]), cache)
        assert Counter(seen.order) == Counter(passes * model.activation_names())
    assert all(x.shape[0] == len(IDS) for x in seen.activations.values())


@pytest.fixture(scope="module", params=TINY)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family."""
    return tiny(tmp_path_factory.mktemp(request.param), request.param)


def test_the_names(folder: Path) -> None:
    """What people's notebooks will hold: it stays."""
    parts = {"attn.q", "attn.k", "attn.v", "attn.z", "attn.out", "mlp.act", "mlp.out"}
    of_layer = {*parts, "resid_pre", "resid_mid", "resid_post"}
    expected = {"embed", "final", *(f"layers.{layer}.{name}" for layer in range(3) for name in of_layer)}
    assert set(opened(folder, backend()).activation_names()) == expected


@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
def test_what_is_shown_is_what_transformers_computes(folder: Path, backend_name: str) -> None:
    theirs: Any = judge(folder)
    model, seen = opened(folder, backend(backend_name)), Seen()
    model.observe(seen)
    forward(model, IDS)
    with torch.no_grad():
        hidden = theirs(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    names = ["layers.0.resid_pre", "layers.0.resid_post", "layers.1.resid_post", "final"]
    for name, truth in zip(names, hidden, strict=True):
        assert (seen.activations[name] - truth[0]).abs().max() < 1e-5 * truth.abs().max(), name
    for layer in range(3):
        at = f"layers.{layer}."
        ways = ("resid_pre", "attn.out", "resid_mid"), ("resid_mid", "mlp.out", "resid_post")
        norms = NORMS_BEHIND.get(theirs.config.model_type, (None, None))
        for (before, part, after), norm in zip(ways, norms, strict=True):
            out = seen.activations[at + part]
            added = seen.activations[at + before] + (out if norm is None else vars(model.blocks[layer])[norm](out))
            assert torch.allclose(added, seen.activations[at + after], atol=1e-5)
        [attn] = [part for part in parts(model.blocks[layer]) if isinstance(part, Attention)]
        assert torch.allclose(attn.o_proj(seen.activations[at + "attn.z"]), seen.activations[at + "attn.out"])


@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
def test_an_observer_may_change_what_it_sees(folder: Path, backend_name: str) -> None:
    model = opened(folder, backend(backend_name))
    names = model.activation_names()
    plain = forward(model, IDS)
    for name in names:
        model.observe(lambda seen, x, name=name: x.cos() if seen == name else None)
        assert not torch.allclose(forward(model, IDS), plain), name
    model.observe(lambda name, x: torch.zeros_like(x) if name.endswith((".attn.out", ".mlp.out")) else None)
    embedded = Seen()
    ablated = forward(model, IDS)
    model.observe(embedded)
    forward(model, IDS)
    model.observe(None)
    assert model.norm is not None
    assert torch.allclose(ablated, model.norm(embedded.activations["embed"]), atol=1e-6)
    assert torch.equal(forward(model, IDS), plain)


# ---- objects that no architecture of ours has yet -----------------------------------------------------------------

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB = 32, 4, 2, 8, 48, 64
SIZES = {"q": HEADS * HEAD_DIM, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM}
SHAPES = {name: (size, HIDDEN) for name, size in SIZES.items()}
SHAPES |= {"o": (HIDDEN, SIZES["q"]), "gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}


def some_weights(q_norm: int, k_norm: int) -> Weights:
    """Random tensors for three layers."""
    dice = torch.Generator().manual_seed(1)
    made = {"table": torch.randn(VOCAB, HIDDEN, generator=dice)}
    norms = {"q_norm": q_norm, "k_norm": k_norm, "first": HIDDEN, "second": HIDDEN}
    for layer in range(3):
        made |= {f"{layer}.{name}.weight": torch.randn(shape, generator=dice) / 4 for name, shape in SHAPES.items()}
        made |= {f"{layer}.{name}.weight": 1 + torch.randn(size, generator=dice) / 4 for name, size in norms.items()}
    return Weights.of({name: StoredTensor(Path("here"), lambda x=x: x) for name, x in made.items()}, "here")


class After(Block):
    """Norms behind the parts, on their own results, before these are added: as in OLMo 2 (arXiv:2501.00656)."""

    def __init__(self, layer: int, weights: Weights, kernels: Kernels, rotary: Rotary | None, norms: list[int]) -> None:
        linear = {
            name: Linear(kernels, weights.at(name), shape[1], shape[0], bias=False) for name, shape in SHAPES.items()
        }
        q_norm, k_norm = (
            RMSNorm(kernels, weights.at(name), size, 1e-6)
            for name, size in zip(("q_norm", "k_norm"), norms, strict=True)
        )
        self.attn = Attention(
            MergedLinear(linear["q"], linear["k"], linear["v"]),
            linear["o"],
            layer=layer,
            head_dim=HEAD_DIM,
            scale=0.3,
            rotary=rotary,
            q_norm=q_norm,
            k_norm=k_norm,
            softcap=4.0 if layer == 1 else None,
            window=3 if layer == 2 else None,
        )
        self.first = RMSNorm(kernels, weights.at("first"), HIDDEN, 1e-6)
        self.mlp = GatedMLP("gelu_pytorch_tanh", linear["gate"], linear["up"], linear["down"])
        self.second = RMSNorm(kernels, weights.at("second"), HIDDEN, 1e-6)

    def __call__(self, x: torch.Tensor, batch: Batch, cache: KVCache) -> torch.Tensor:
        x = self.first(self.attn(x, None, batch, cache), residual=x)
        return self.second(self.mlp(x), residual=x)


class Config:
    vocab_size = VOCAB


class Mixed(Decoder):
    """Each layer with a rotary embedding of its own, or none: as in Gemma 3 and SmolLM3."""

    def __init__(self, kernels: Kernels, norms: list[int]) -> None:
        weights = some_weights(*norms)
        rotaries = [None, *(RotaryEmbedding(RopeParameters(theta), HEAD_DIM, weights.device) for theta in (9.0, 1e4))]
        head = Head(kernels, weights.matrix("table", VOCAB, HIDDEN))
        blocks = [After(layer, weights.at(layer), kernels, one, norms) for layer, one in enumerate(rotaries)]
        super().__init__(Config, weights, context_length=128, blocks=blocks, norm=None, lm_head=head)

    def embed(self, batch: Batch) -> torch.Tensor:
        return self.kernels.embedding(batch.input_ids, self.lm_head.weight)


def by_hand(model: Mixed, ids: list[int]) -> torch.Tensor:
    """The same in float64, from formulas, for one run from its beginning."""
    x = model.lm_head.weight.tensors[0].double()[ids]
    for number, block in enumerate(model.blocks):
        assert isinstance(block, After)
        x = x + normed(block.first, attended(block.attn, x, number))
        gate, up, down = (part.weight.tensors[0].double() for part in (block.mlp.gate, block.mlp.up, block.mlp.down))
        acted = torch.nn.functional.gelu(x @ gate.T, approximate="tanh") * (x @ up.T)
        x = x + normed(block.second, acted @ down.T)
    return x


def normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double()


def attended(attn: Attention, x: torch.Tensor, number: int) -> torch.Tensor:
    assert isinstance(attn.qkv, MergedLinear)
    q, k, v = (x @ weight.tensors[0].double().T for weight in attn.qkv.weights)
    rows = len(x)
    if attn.q_norm is not None and attn.q_norm.size == HEAD_DIM:
        q, k = (normed(norm, each.view(rows, -1, HEAD_DIM)) for norm, each in ((attn.q_norm, q), (attn.k_norm, k)))
    else:
        q, k = normed(attn.q_norm, q), normed(attn.k_norm, k)
    q, k, v = (each.reshape(rows, -1, HEAD_DIM) for each in (q, k, v))
    if number:
        turns = torch.arange(rows)[:, None] * (9.0, 1e4)[number - 1] ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        turn = torch.polar(torch.ones_like(turns).double(), turns.double())[:, None]
        half = HEAD_DIM // 2
        q, k = (torch.complex(each[..., :half], each[..., half:]) * turn for each in (q, k))
        q, k = (torch.cat((each.real, each.imag), -1) for each in (q, k))
    k, v = (each.repeat_interleave(HEADS // KV_HEADS, 1) for each in (k, v))
    scores = torch.einsum("rhd,chd->hrc", q, k) * 0.3
    if number == 1:
        scores = 4 * (scores / 4).tanh()
    distances = torch.arange(rows)[:, None] - torch.arange(rows)
    hidden = (distances < 0) | ((distances >= 3) if number == 2 else False)
    z = torch.einsum("hrc,chd->rhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
    return z.flatten(1) @ attn.o_proj.weight.tensors[0].double().T


EITHER_NORM = pytest.mark.parametrize("norms", [[HEAD_DIM, HEAD_DIM], [SIZES["q"], SIZES["k"]]], ids=["head", "whole"])


@EITHER_NORM
@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
def test_parts_put_together_otherwise_compute_the_formulas(norms: list[int], backend_name: str) -> None:
    model = Mixed(backend(backend_name), norms)
    assert [spec.window for spec in model.layer_specs] == [None, None, 3]
    for ids in (IDS, [*range(60)]):
        truth = by_hand(model, ids)
        assert (forward(model, ids) - truth).abs().max() < 2e-5 * truth.abs().max()


@EITHER_NORM
@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
def test_token_by_token_they_compute_them_too(norms: list[int], backend_name: str) -> None:
    model = Mixed(backend(backend_name), norms)
    cache, truth = KVCache(model.layer_specs, 32), by_hand(model, [*range(24)])
    with torch.inference_mode():
        for at in range(24):
            found = model.forward(batch_of([[at]], [at + 1]), cache)
            assert (found[0] - truth[at]).abs().max() < 2e-5 * truth.abs().max(), at


@EITHER_NORM
def test_each_rotary_embedding_has_its_own_angles_in_captured_blocks(norms: list[int]) -> None:
    fused, plain = Mixed(Cpu(), norms), Mixed(Cpu(fuse=False), norms)
    caches = [KVCache(model.layer_specs, 32) for model in (fused, plain)]
    with torch.inference_mode():
        for rows in (*PASSES, *(([[at]], [10 + at]) for at in range(1, 9))):
            ours, truth = (
                model.forward(batch_of(*rows), cache) for model, cache in zip((fused, plain), caches, strict=True)
            )
            assert torch.equal(ours, truth)
    kernels: Any = fused.kernels
    assert None not in kernels.captured.values()
    assert len(next(iter(kernels.captured_all.values())).capture.angles) == 2
