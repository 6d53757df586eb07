"""The parts of which architectures are made: each takes its tensors by name and computes with the kernels given.

What a part does beyond the plain thing is an object that it is handed (`q_norm=`, `rotary=`, `window=`), never a flag.
"""

from byhand.layers.attention import Attention
from byhand.layers.decoder import Block, Decoder
from byhand.layers.linear import Embedding, Head, Linear, MergedLinear, SplitLinear
from byhand.layers.mlp import ACTIVATIONS, MLP, GatedMLP
from byhand.layers.norm import LayerNorm, RMSNorm
from byhand.layers.observing import Layer, Observer
from byhand.layers.rope import RopeParameters, RotaryEmbedding

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Attention",
    "Block",
    "Decoder",
    "Embedding",
    "GatedMLP",
    "Head",
    "Layer",
    "LayerNorm",
    "Linear",
    "MergedLinear",
    "Observer",
    "RMSNorm",
    "RopeParameters",
    "RotaryEmbedding",
    "SplitLinear",
]
