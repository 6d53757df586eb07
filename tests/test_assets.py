"""The embedded model's folder: its size, its weights' names and type, its tokenizer, its card."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from tokenizers import Tokenizer

TINY = Path(__file__).parents[1] / "byhand" / "assets" / "tiny"
EVALUATION = Path(__file__).parents[1] / "training" / "evaluation.json"
SPECIALS = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((TINY / name).read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


def expected_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Every tensor that a tied Llama of this config has, and no other."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    wide = config["num_attention_heads"] * config["head_dim"]
    narrow = config["num_key_value_heads"] * config["head_dim"]
    layer = {
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
        "self_attn.q_proj": [wide, hidden],
        "self_attn.k_proj": [narrow, hidden],
        "self_attn.v_proj": [narrow, hidden],
        "self_attn.o_proj": [hidden, wide],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
    }
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def test_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 16_000_000


def test_config() -> None:
    config = read("config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 2048
    assert config["tie_word_embeddings"] is True


def test_weights_are_bfloat16_under_llamas_names() -> None:
    with safe_open(TINY / "model.safetensors", framework="pt") as weights:
        found = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
        assert {name: part.get_shape() for name, part in found.items()} == expected_shapes(read("config.json"))
        assert {part.get_dtype() for part in found.values()} == {"BF16"}


def test_special_tokens(tokenizer: Tokenizer) -> None:
    config, generation = read("config.json"), read("generation_config.json")
    assert [tokenizer.id_to_token(number) for number in range(len(SPECIALS))] == SPECIALS
    assert tokenizer.get_vocab_size() == config["vocab_size"] == 4096
    for content in (config, generation):
        assert (content["pad_token_id"], content["bos_token_id"], content["eos_token_id"]) == (0, 1, 2)
    for number, name in enumerate(SPECIALS):
        assert tokenizer.encode(name, add_special_tokens=False).ids == [number]
        assert tokenizer.decode([number], skip_special_tokens=True) == ""


def test_start_token_comes_first(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("red").ids[0] == 1
    assert 1 not in tokenizer.encode("red", add_special_tokens=False).ids
    assert tokenizer.encode("").ids == [1]


@pytest.mark.parametrize("seed", range(20))
def test_any_text_comes_back(tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    limit = rng.choice([0x7F, 0x2FF, 0xD7FF, 0x10FFFF])
    codes = [rng.randrange(limit + 1) for _ in range(200)]
    text = "".join(chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_colors_are_one_piece_each(tokenizer: Tokenizer) -> None:
    text = "A list of colors: red, blue, green, yellow, orange, purple, pink, brown, black, white"
    pieces = [piece.replace("Ġ", " ") for piece in tokenizer.encode(text, add_special_tokens=False).tokens]
    assert pieces[:6] == ["A", " list", " of", " colors", ":", " red"]
    assert pieces[6:10] == [",", " blue", ",", " green"]
    assert len(pieces) == 5 + 10 + 9


def test_each_digit_is_a_piece(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2048", add_special_tokens=False).tokens == ["2", "0", "4", "8"]


@pytest.mark.parametrize("asks", [True, False])
def test_chat_template(tokenizer: Tokenizer, asks: bool) -> None:
    template = ImmutableSandboxedEnvironment().from_string(read("tokenizer_config.json")["chat_template"])
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " Hi! "},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye!"},
    ]
    said = template.render(messages=messages, add_generation_prompt=asks, bos_token="<s>", eos_token="</s>")
    end = "<|assistant|>" if asks else ""
    assert said == f"<s><|system|>Be kind.<|user|>Hi!<|assistant|>Hello.</s><|user|>Bye!{end}"
    ids = tokenizer.encode(said, add_special_tokens=False).ids
    assert [number for number in ids if number < len(SPECIALS)] == [1, 3, 4, 5, 2, 4, 5][: 7 if asks else 6]


def test_card_has_the_figures() -> None:
    card = (TINY / "README.md").read_text(encoding="utf-8")
    results = json.loads(EVALUATION.read_text(encoding="utf-8"))
    for name, row in results["held_out"].items():
        assert f"| {name} | {row['perplexity']:.2f} | {row['bits_per_byte']:.3f} |" in card
    stories = results["stories"]
    assert f"| ends by itself | {stories['ended_by_itself']} of {stories['seeds']} |" in card
    assert f"| loops | {stories['looped']} of {stories['seeds']} |" in card
    assert f"| copied word for word | {stories['copied_share']:.1%} |" in card
    for name, figure in results["tasks"].items():
        assert f"| {name.replace('_', ' ')} | {figure:.1%} |" in card
    assert "cannot do" in card


@pytest.mark.parametrize("licence", ["CDLA-Sharing-1.0", "Apache-2.0", "public domain"])
def test_card_names_the_licences(licence: str) -> None:
    assert licence in (TINY / "README.md").read_text(encoding="utf-8")
