"""A Llama to train: the checkpoint's own names, with dropout, over packed documents."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the model, in config.json's own names."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 688
    num_hidden_layers: int = 7
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def config(self) -> dict[str, object]:
        """The config.json of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
            "use_cache": True,
        }


def rotations(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles, (T, head_dim), halves repeated as in Llama."""
    powers = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
    inverse = shape.rope_theta**-powers
    angles = torch.outer(torch.arange(shape.max_position_embeddings).float(), inverse)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys (heads, N, head_dim) by their positions' angles."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention within one document; all (heads, T, head_dim)."""
    length = q.shape[1]
    if length > 1024:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    # On a processor the plain products are four times as fast as the fused kernel's backward.
    future = torch.full((length, length), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    with torch.autocast(q.device.type, enabled=False):
        scores = torch.baddbmm(future, q, k.mT, alpha=q.shape[-1] ** -0.5)  # (heads, T, T)
        return torch.softmax(scores, dim=-1) @ v


class Norm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.hidden_size))
        self.eps = shape.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        """Scale each row to unit root mean square, in float32."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention that keeps documents apart."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        wide = shape.num_attention_heads * shape.head_dim
        narrow = shape.num_key_value_heads * shape.head_dim
        self.head_dim = shape.head_dim
        self.groups = shape.num_attention_heads // shape.num_key_value_heads
        self.q_proj = nn.Linear(shape.hidden_size, wide, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, narrow, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, narrow, bias=False)
        self.o_proj = nn.Linear(wide, shape.hidden_size, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        """(N, heads · head_dim) as (heads, N, head_dim)."""
        return x.view(x.shape[0], -1, self.head_dim).transpose(0, 1)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: list[int]) -> Tensor:
        """Mix each token with those before it in its document."""
        q, k, v = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k = k.repeat_interleave(self.groups, dim=0)
        v = v.repeat_interleave(self.groups, dim=0)
        # One call for each document: nothing is padded, and no document sees another.
        parts = zip(*(torch.split(rows, lengths, dim=1) for rows in (q, k, v)), strict=True)
        z = [attend(q, k, v) for q, k, v in parts]
        return torch.as_tensor(self.o_proj(torch.cat(z, dim=1).transpose(0, 1).flatten(1)))


class MLP(nn.Module):
    """The gated feed-forward half of a layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """SwiGLU."""
        return torch.as_tensor(self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    """Attention, then MLP, each added to the stream after dropout."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape)
        self.mlp = MLP(shape)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: list[int]) -> Tensor:
        """One layer over (N, hidden)."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin, lengths))
        return x + torch.as_tensor(self.dropout(self.mlp(self.post_attention_layernorm(x))))


class Trunk(nn.Module):
    """Everything below the logits; named so that parameters read `model.layers.0…`."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape)
        self.dropout = nn.Dropout(dropout)


class Llama(nn.Module):
    """The whole model; its `state_dict` is what LlamaForCausalLM reads."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.model = Trunk(shape, dropout)
        cos, sin = rotations(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self.start)
        # Each layer adds twice to the stream; smaller last matrices keep its sum near one.
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape.num_hidden_layers))

    @staticmethod
    def start(module: nn.Module) -> None:
        """Give one module its first weights."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, input_ids: Tensor, lengths: list[int]) -> Tensor:
        """Logits (N, vocab) of documents that lie one after another, each `lengths` long."""
        positions = torch.cat([torch.arange(n, device=input_ids.device) for n in lengths])
        x = self.model.dropout(self.model.embed_tokens(input_ids))
        # The stream stays float32; the angles take the matrices' type.
        device = x.device.type
        lower = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        cos, sin = self.cos[positions].to(lower), self.sin[positions].to(lower)
        for layer in self.model.layers:
            x = layer(x, cos, sin, lengths)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)
