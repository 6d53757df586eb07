"""Every architecture against transformers on the same weights: float32, eager attention, a mask of ones."""

from __future__ import annotations

import functools
import json
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedModel

from byhand.checkpoint import open_checkpoint
from byhand.config import ConfigFields
from byhand.errors import BadConfig, BadWeights, UnknownArchitecture
from byhand.kernels import backend
from byhand.layers.rope import KINDS, RopeParameters, RotaryEmbedding
from byhand.models import Model, architecture_of, architectures, build
from tests.checkpoints import (
    CONFIGS,
    SHARED,
    KVCacheManager,
    PagedRun,
    greedy,
    judge,
    judge_greedy,
    judge_logits,
    logits_of,
    make_checkpoint,
    open_model,
    random_prompt,
    relative_error,
    rewrite_config,
    rewrite_tensors,
    tiny,
)
from tests.tiny_configs import TINY

BOUND = 2e-5
FAMILIES = sorted({family for family, _ in CONFIGS})
EACH_CONFIG = pytest.mark.parametrize("config", CONFIGS, ids="-".join)
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our model and the judge of one of CONFIGS."""

    @functools.cache
    def make(config: tuple[str, str]) -> tuple[Model, PreTrainedModel]:
        folder = tiny(tmp_path_factory.mktemp("tiny"), *config)
        return open_model(folder), judge(folder)

    return make


# ---- parity -------------------------------------------------------------------------------------------------------


@EACH_FAMILY
def test_family_has_at_least_five_variants(family: str) -> None:
    assert sum(name == family for name, _ in CONFIGS) >= 6


@EACH_CONFIG
def test_logits_at_all_positions(config: tuple[str, str], pair_of: Any) -> None:
    ours, theirs = pair_of(config)
    ids = random_prompt(128, 75, seed=1)
    truth = judge_logits(theirs, ids)
    whole = logits_of(ours, ids)
    assert whole.dtype == torch.float32
    assert relative_error(whole, truth) < BOUND
    for seed in range(2):
        cuts = sorted(random.Random(seed).sample(range(1, 75), 5))
        assert relative_error(logits_of(ours, ids, cuts, seed), truth) < BOUND


@EACH_CONFIG
def test_many_runs_in_one_ragged_pass(config: tuple[str, str], pair_of: Any) -> None:
    ours, theirs = pair_of(config)
    runs = [PagedRun(random_prompt(128, length, seed=length)) for length in (1, 50, 17, 16, 33)]
    manager = KVCacheManager(ours)
    manager.step([(runs[1], 20), (runs[4], 32)])
    rows = manager.step([(run, len(run.ids)) for run in runs])
    for run, logits in zip(runs, rows, strict=True):
        truth = judge_logits(theirs, run.ids)
        assert relative_error(logits, truth[-len(logits) :]) < BOUND


@EACH_CONFIG
def test_greedy_equals_generate(config: tuple[str, str], pair_of: Any) -> None:
    ours, theirs = pair_of(config)
    prompts = [random_prompt(128, length, seed=length) for length in (1, 4, 21)]
    answers = [judge_greedy(theirs, prompt, 12) for prompt in prompts]
    assert greedy(ours, prompts, 12) == answers


@pytest.mark.full
@EACH_CONFIG
def test_greedy_equals_generate_full(config: tuple[str, str], tmp_path: Path) -> None:
    for seed in range(2):
        folder = tiny(tmp_path / str(seed), *config, seed=seed)
        ours, theirs = open_model(folder), judge(folder)
        prompts = [random_prompt(128, 1 + 5 * number, seed=1000 * seed + number) for number in range(20)]
        answers = [judge_greedy(theirs, prompt, 64) for prompt in prompts]
        assert len({token for answer in answers for token in answer}) > 10
        assert greedy(ours, prompts, 64) == answers


@EACH_FAMILY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_run_in_float32(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny(tmp_path, family, dtype=dtype)
    ours, theirs = open_model(folder), judge(folder)
    ids = random_prompt(128, 40, seed=3)
    assert ours.dtype == str(dtype).removeprefix("torch.")
    assert relative_error(logits_of(ours, ids), judge_logits(theirs, ids)) < BOUND
    assert greedy(ours, [ids[:5]], 12) == [judge_greedy(theirs, ids[:5], 12)]


def test_dtype_asked_for(tmp_path: Path) -> None:
    folder = tiny(tmp_path, dtype=torch.bfloat16)
    ids = random_prompt(128, 30, seed=4)
    stored, widened = open_model(folder), open_model(folder, "float32")
    assert (stored.dtype, widened.dtype) == ("bfloat16", "float32")
    assert relative_error(logits_of(stored, ids), logits_of(widened, ids)) < BOUND
    narrowed = open_model(tiny(tmp_path / "wide"), "bfloat16")
    assert narrowed.dtype == "bfloat16"
    assert relative_error(logits_of(narrowed, ids), logits_of(open_model(tmp_path / "wide"), ids)) > 1e-4


def test_logits_only_for_the_rows_asked_for(tmp_path: Path) -> None:
    model = open_model(tiny(tmp_path))
    run, manager = PagedRun(random_prompt(128, 20, seed=5)), KVCacheManager(model)
    hidden = model.forward(manager.batch([(run, 20)]), manager.cache)
    assert hidden.shape == (20, 48)
    assert model.logits(hidden[[3, 19]]).shape == (2, 128)
    assert relative_error(model.logits(hidden[[3, 19]]), model.logits(hidden)[[3, 19]]) < 1e-6


def test_layer_specs_say_what_each_layer_keeps(tmp_path: Path) -> None:
    model = open_model(tiny(tmp_path, "qwen2", "window_by_layer_types"))
    assert [(spec.num_key_value_heads, spec.head_dim) for spec in model.layer_specs] == [(2, 8)] * 3
    assert [spec.window for spec in model.layer_specs] == [9, None, 9]
    assert (model.vocab_size, model.context_length) == (128, 256)


def test_a_context_that_is_full_to_the_last_position(pair_of: Any) -> None:
    for family in FAMILIES:
        ours, theirs = pair_of((family, "tiny"))
        ids = random_prompt(128, ours.context_length, seed=6)
        assert relative_error(logits_of(ours, ids, [200]), judge_logits(theirs, ids)) < BOUND


@pytest.mark.skipif(not (SHARED / "models/stories260K").exists(), reason="the trained checkpoint is not here")
def test_trained_checkpoint_tells_its_story() -> None:
    folder = SHARED / "models/stories260K"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    start = tokenizer.token_to_id("<s>")
    story = greedy(open_model(folder), [[start]], 200)[0]
    assert tokenizer.decode([start, *story]) == (folder / "expected_greedy_200.txt").read_text()


# ---- files as they really lie on the hub --------------------------------------------------------------------------


def check_against(folder: Path, truth: PreTrainedModel) -> None:
    ids = random_prompt(128, 40, seed=7)
    assert relative_error(logits_of(open_model(folder), ids), judge_logits(truth, ids)) < BOUND


def test_gpt2_without_prefix_and_with_masks(tmp_path: Path) -> None:
    theirs = judge(tiny(tmp_path, "gpt2"))

    def age(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 256, 256).tril() for layer in range(3)}
        masks |= {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(3)}
        return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()} | masks

    rewrite_tensors(tmp_path, age)
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    check_against(tmp_path, theirs)


def test_gpt2_with_prefix_and_masks(tmp_path: Path) -> None:
    theirs = judge(tiny(tmp_path, "gpt2"))
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in range(3)}
    rewrite_tensors(tmp_path, lambda tensors: tensors | masks)
    check_against(tmp_path, theirs)


@pytest.mark.parametrize("prefix", ["decoder.", ""])
def test_opt_without_the_outer_prefix(prefix: str, tmp_path: Path) -> None:
    theirs = judge(tiny(tmp_path, "opt", "350m"))

    def age(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.replace("model.decoder.", prefix): tensor for name, tensor in tensors.items()}

    rewrite_tensors(tmp_path, age)
    check_against(tmp_path, theirs)


@pytest.mark.parametrize("family", ["llama", "olmo2", "qwen2", "qwen3"])
def test_rotary_buffers_are_ignored(family: str, tmp_path: Path) -> None:
    theirs = judge(tiny(tmp_path, family))
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.rand(4) for layer in range(3)}
    rewrite_tensors(tmp_path, lambda tensors: tensors | buffers)
    check_against(tmp_path, theirs)


TIED = [
    ("gpt2", "tiny"),
    ("opt", "tiny"),
    ("opt", "350m"),
    ("llama", "multi_query"),
    ("olmo2", "tied"),
    ("qwen2", "tied"),
    ("qwen3", "tied"),
]
EACH_TIED = pytest.mark.parametrize("config", TIED, ids="-".join)


def embedding_name(folder: Path) -> str:
    names = load_file(folder / "model.safetensors")
    return next(name for name in names if name.endswith(("embed_tokens.weight", "wte.weight")))


@EACH_TIED
def test_tied_head_stored_twice_is_held_once(config: tuple[str, str], tmp_path: Path) -> None:
    theirs = judge(tiny(tmp_path, *config))
    name = embedding_name(tmp_path)
    rewrite_tensors(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors[name].clone()})
    check_against(tmp_path, theirs)
    model: Any = open_model(tmp_path)
    embedding = model.wte if config[0] == "gpt2" else model.embed_tokens
    assert model.lm_head.weight is embedding.weight


@EACH_TIED
def test_tied_head_stored_under_the_other_name(config: tuple[str, str], tmp_path: Path) -> None:
    theirs = judge(tiny(tmp_path, *config))
    name = embedding_name(tmp_path)
    rewrite_tensors(
        tmp_path, lambda tensors: {"lm_head.weight" if key == name else key: value for key, value in tensors.items()}
    )
    check_against(tmp_path, theirs)


@EACH_TIED
def test_tied_in_word_but_not_in_numbers_is_read_as_stored(config: tuple[str, str], tmp_path: Path) -> None:
    tiny(tmp_path, *config)
    name = embedding_name(tmp_path)
    rewrite_tensors(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors[name].flip(0)})
    check_against(tmp_path, judge(tmp_path))


@EACH_FAMILY
def test_untied_head_must_be_there(family: str, tmp_path: Path) -> None:
    tiny(tmp_path, family)
    rewrite_config(tmp_path, tie_word_embeddings=False)
    rewrite_tensors(tmp_path, lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"})
    with pytest.raises(BadWeights, match=r"`lm_head\.weight` is missing in "):
        open_model(tmp_path)


def test_model_saved_without_its_head(tmp_path: Path) -> None:
    theirs = judge(tiny(tmp_path, "llama", "multi_query"))
    rewrite_tensors(tmp_path, lambda tensors: {name.removeprefix("model."): value for name, value in tensors.items()})
    check_against(tmp_path, theirs)


def test_dtype_words_of_old_and_new_files_are_no_obstacle(tmp_path: Path) -> None:
    for word in ("torch_dtype", "dtype"):
        folder = make_checkpoint(tmp_path / word, {**CONFIGS["llama", "tiny"], word: "bfloat16"}, dtype=torch.bfloat16)
        check_against(folder, judge(folder))


def test_fields_that_are_null_take_their_defaults(tmp_path: Path) -> None:
    nulls = ("num_key_value_heads", "head_dim", "rope_scaling", "attention_bias", "mlp_bias", "hidden_act")
    config = {**CONFIGS["llama", "multi_head"], **dict.fromkeys(nulls), "pad_token_id": None}
    parsed: Any = architectures()["llama"].Config.from_json(config)
    assert parsed == architectures()["llama"].Config.from_json({k: v for k, v in config.items() if v is not None})
    assert (parsed.num_key_value_heads, parsed.head_dim, parsed.qkv_bias) == (6, 8, False)


def test_qwen_ignores_a_window_that_is_not_used() -> None:
    for family in ("qwen2", "qwen3"):
        config = CONFIGS[family, "tiny"]
        parse: Any = architectures()[family].Config.from_json
        assert config["sliding_window"] == 5
        assert parse(config).windows == (None, None, None)
        assert parse({**config, "use_sliding_window": True}).windows == (None, 5, 5)
        assert parse({**config, "use_sliding_window": True, "sliding_window": None}).windows == (None, None, None)
        with pytest.raises(BadConfig, match="`layer_types`"):
            parse({**config, "layer_types": ["sliding_attention"] * 3})


# What the config.json of well-known models says, in the words of the day it was written.
REAL_CONFIGS: dict[str, dict[str, Any]] = {
    "opt-350m": {
        "_remove_final_layer_norm": False, "activation_dropout": 0.0, "activation_function": "relu",
        "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2, "do_layer_norm_before": False,
        "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 4096, "hidden_size": 1024, "init_std": 0.02, "layerdrop": 0.0,
        "max_position_embeddings": 2048, "model_type": "opt", "num_attention_heads": 16, "num_hidden_layers": 24,
        "pad_token_id": 1, "prefix": "</s>", "torch_dtype": "float16", "use_cache": True, "vocab_size": 50272,
        "word_embed_proj_dim": 512,
    },
    "Llama-3.2-1B": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        }, "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": 128256,
    },
    "Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    "gpt2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", REAL_CONFIGS)
def test_real_configs_mean_what_transformers_reads_in_them(name: str, tmp_path: Path) -> None:
    config = REAL_CONFIGS[name]
    ours: Any = architectures()[config["model_type"]].Config.from_json(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoConfig.from_pretrained(tmp_path)
    shared = {each.name for each in fields(ours) if getattr(theirs, each.name, None) is not None}
    assert len(shared) > 7
    assert {slot: getattr(ours, slot) for slot in shared} == {slot: getattr(theirs, slot) for slot in shared}
    if hasattr(ours, "rope"):
        assert ours.rope.rope_theta == theirs.rope_parameters["rope_theta"]
        assert (ours.rope.scaling is None) == (theirs.rope_parameters["rope_type"] == "default")


def test_mistral_window_absent_is_not_null() -> None:
    parse: Any = architectures()["mistral"].Config.from_json
    config = {**CONFIGS["llama", "mistral"]}
    assert parse(config).windows == (None, None, None)
    del config["sliding_window"]
    assert parse(config).windows == (4096, 4096, 4096)
    assert parse({**config, "model_type": "llama", "sliding_window": 7}).windows == (None, None, None)


# ---- rotary positions ---------------------------------------------------------------------------------------------


def rope(**config: Any) -> RopeParameters:
    return RopeParameters.from_json(ConfigFields({"max_position_embeddings": 256, **config}))


def test_rope_old_words_mean_the_same_as_new_ones() -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}
    for kind, numbers in {"linear": {"factor": 3}, "llama3": llama3, "yarn": {"factor": 4.0}, "default": {}}.items():
        new = rope(rope_parameters={"rope_type": kind, "rope_theta": 5e5, **numbers})
        assert new == rope(rope_theta=5e5, rope_scaling={"type": kind, **numbers})
        assert new == rope(rope_theta=5e5, rope_scaling={"rope_type": kind, "type": "ignored", **numbers})
        assert new == rope(
            rope_parameters={"rope_theta": 1.5e9},
            rope_theta=5e5,
            rope_scaling={"type": kind, **numbers, "rope_theta": 5e5},
        )
        assert new.rope_theta == 5e5
    assert rope() == rope(rope_scaling=None, rope_theta=None) == rope(rope_scaling={}) == RopeParameters(1e4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rope_scaling": {"type": "longrope"}}, ["`type`", "'longrope'", *KINDS]),
        ({"rope_scaling": {"rope_type": 3}}, ["`rope_type`", "3"]),
        ({"rope_scaling": {"type": "linear"}}, ["`factor`", "missing"]),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, ["`factor`", "0"]),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, ["`factor`", "nan"]),
        ({"rope_scaling": "linear"}, ["`rope_scaling`", "an object"]),
        ({"rope_theta": 0}, ["`rope_theta`", "0"]),
        ({"rope_theta": True}, ["`rope_theta`", "True"]),
        ({"partial_rotary_factor": 0.5}, ["`partial_rotary_factor`", "0.5"]),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            ["`high_freq_factor`", "4"],
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, ["`full_attention`"]),
    ],
)
def test_rope_refusals_name_the_field(config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadConfig) as refused:
        rope(**config)
    assert all(word in str(refused.value) for word in words), refused.value


def test_far_positions_turn_as_in_transformers(tmp_path: Path) -> None:
    for variant in ("rope_llama3", "rope_yarn", "rope_linear"):
        theirs = judge(tiny(tmp_path / variant, "llama", variant))
        parsed: Any = architectures()["llama"].Config.from_json(CONFIGS["llama", variant])
        positions = torch.tensor([0, 1, 17, 4095, 131071])
        cos, sin = RotaryEmbedding(parsed.rope, parsed.head_dim, torch.device("cpu"))(positions)
        expected = theirs.model.rotary_emb(torch.zeros(1), positions[None])
        assert torch.allclose(cos, expected[0][0], atol=1e-6)
        assert torch.allclose(sin, expected[1][0], atol=1e-6)


# ---- configs from the wild ----------------------------------------------------------------------------------------

BAD_VALUES: list[Any] = [
    "x", -1, 0, 0.5, True, [], {}, [[]], 10**9, 10**400, 1e400, float("nan"), -1e400, "", {"rope_type": []}, ["x"] * 3
]  # fmt: skip


@EACH_FAMILY
def test_whatever_a_field_holds_is_read_or_refused_by_name(family: str) -> None:
    parse = architectures()[family].Config.from_json
    names = {name for (other, _), config in CONFIGS.items() if other == family for name in config} - {"model_type"}
    refusals = []
    for name in names:
        for value in BAD_VALUES:
            try:
                parse({**CONFIGS[family, "tiny"], name: value})
            except BadConfig as refused:
                refusals.append((name, str(refused)))
    assert [sentence for name, sentence in refusals if name not in sentence or len(sentence) > 300] == []
    assert len(refusals) > 5 * len(names)


LLAMA_SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
SIZES = {
    "gpt2": ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"],
    "opt": [
        "vocab_size",
        "hidden_size",
        "ffn_dim",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ],
    "llama": LLAMA_SIZES,
    "olmo2": LLAMA_SIZES,
    "qwen2": LLAMA_SIZES,
    "qwen3": LLAMA_SIZES,
}


@EACH_FAMILY
def test_sizes_must_be_there_and_bounded(family: str) -> None:
    config = CONFIGS[family, "tiny"]
    parse = architectures()[family].Config.from_json
    for name in SIZES[family]:
        with pytest.raises(BadConfig, match=f"`{name}` is missing"):
            parse({key: value for key, value in config.items() if key != name})
        with pytest.raises(BadConfig, match=f"`{name}` is 1000000000; it must be a whole number from 1 to"):
            parse({**config, name: 10**9})


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        (
            "llama",
            {"num_attention_heads": 7, "num_key_value_heads": None},
            "`hidden_size` is 48; it must be a multiple of `num_attention_heads` (7)",
        ),
        ("llama", {"num_key_value_heads": 4}, "`num_key_value_heads` is 4; it must be a divisor of"),
        ("llama", {"num_key_value_heads": 12}, "`num_key_value_heads` is 12; it must be a whole number from 1 to 6"),
        ("llama", {"head_dim": 7}, "`head_dim` is 7; rotary positions need an even one"),
        ("llama", {"hidden_act": "mish"}, "`hidden_act` is 'mish'; it must be one of gelu, "),
        ("gpt2", {"activation_function": "tanh"}, "`activation_function` is 'tanh'; it must be one of gelu, "),
        ("gpt2", {"n_head": 5}, "`n_embd` is 48; it must be a multiple of `n_head` (5)"),
        ("gpt2", {"add_cross_attention": True}, "`add_cross_attention` is True; it must be false"),
        ("opt", {"num_attention_heads": 5}, "`hidden_size` is 48; it must be a multiple of `num_attention_heads` (5)"),
        ("qwen3", {"head_dim": 9}, "`head_dim` is 9; rotary positions need an even one"),
    ],
)
def test_contradictions_are_refused(family: str, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadConfig) as refused:
        architectures()[family].Config.from_json({**CONFIGS[family, "tiny"], **changes})
    assert sentence in str(refused.value)


# ---- finding an architecture --------------------------------------------------------------------------------------


def test_discovery_finds_every_file() -> None:
    known = architectures()
    assert {"gpt2", "opt", "llama", "mistral", "olmo2", "qwen2", "qwen3"} <= known.keys()
    for name, module in known.items():
        assert name in module.MODEL_TYPES
        assert set(module.MODEL_TYPES) & TINY.keys(), f"{module.__name__} has no config in tests/tiny_configs.py"


def test_unknown_architecture_names_those_known(tmp_path: Path) -> None:
    tiny(tmp_path)
    rewrite_config(tmp_path, model_type="mamba")
    with pytest.raises(UnknownArchitecture, match=r"'mamba' .* gpt2, llama, mistral, olmo2, opt, qwen2, qwen3"):
        open_model(tmp_path)
    rewrite_config(tmp_path, model_type=["llama"])
    with pytest.raises(BadConfig, match=r"`model_type` is \['llama'\]"):
        architecture_of(open_checkpoint(tmp_path))


def test_quantized_checkpoints_of_other_programs_are_refused(tmp_path: Path) -> None:
    tiny(tmp_path)
    rewrite_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(BadConfig, match="`quantization_config` is of 'gptq'"):
        open_model(tmp_path)


def test_a_config_that_promises_too_much_fails_before_it_costs_anything(tmp_path: Path) -> None:
    tiny(tmp_path)
    for name, value in {"num_hidden_layers": 10_000, "hidden_size": 2**23, "vocab_size": 2**24}.items():
        rewrite_config(tmp_path, **{**CONFIGS["llama", "tiny"], name: value})
        with pytest.raises((BadWeights, BadConfig)):
            build(open_checkpoint(tmp_path), backend())
