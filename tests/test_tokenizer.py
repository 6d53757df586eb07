"""The tokenizer: ids as the checkpoint's own makers give them, and a sentence for every folder that has none."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from byhand.errors import BadConfig, ByhandError, CheckpointError, CheckpointNotFound, PromptError
from byhand.text import Tokenizer
from tests.tokenizers_for_tests import (
    LINES,
    REAL,
    SHARED,
    byte_fallback,
    byte_level,
    every_sort,
    unigram,
    with_plain_additions,
    word_piece,
    write_folder,
    write_vocab_and_merges,
)

VECTORS = SHARED / "data" / "tokenizer_vectors"
needs_shared = pytest.mark.skipif(not REAL.is_dir(), reason="the real vocabularies lie outside the repository")

TEXTS = [
    *LINES,
    "",
    " ",
    "  two  spaces ",
    "\n\n",
    "a<s>b</s> c",
    "x <|im_start|>user\n",
    "ﬁ e\u0301 é",
    "don't I'LL we'Ve",
]


def added(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True} | flags


# What real checkpoints give.


@needs_shared
def test_a_comma_is_six_in_opt():
    tokenizer = Tokenizer.open(REAL / "opt")
    assert tokenizer.one_token(",") == 6
    assert tokenizer.encode("red, blue") == [2, 2050, 6, 2440]
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (2, {2}, 50265)


@needs_shared
def test_gpt2_puts_nothing_first():
    tokenizer = Tokenizer.open(REAL / "gpt2")
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (50256, {50256})


@needs_shared
@pytest.mark.parametrize(("name", "folder"), [("gpt-2", "gpt2"), ("phi-3", "phi-3")])
def test_vectors_of_llama_cpp(name: str, folder: str):
    texts = (VECTORS / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
    lines = (VECTORS / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")[:-1]
    expected = [[int(token) for token in line.split()] for line in lines]
    tokenizer = Tokenizer.open(REAL / folder)
    assert len(texts) == len(expected) == 46
    assert [tokenizer.encode(text) for text in texts] == expected


# The judge: what transformers' AutoTokenizer makes of the same folder.


def opt_config(**changes: Any) -> dict[str, Any]:
    names = {name: added("</s>", __type="AddedToken") for name in ("bos_token", "eos_token", "unk_token")}
    return names | {"pad_token": "<pad>", "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"} | changes


def qwen_folder(folder: Path) -> Path:
    backend = byte_level()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
    size = backend.get_vocab_size()
    decoder = {
        str(size + place): added(name, normalized=False, special=not name.startswith("<tool"))
        for place, name in enumerate(names)
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "added_tokens_decoder": decoder,
    }
    return write_vocab_and_merges(
        folder, backend, tokenizer_config=config, config={"model_type": "qwen2", "bos_token_id": size}
    )


def opt_vocabulary() -> tokenizers.Tokenizer:
    return byte_level("<s>", "<pad>", "</s>", "<unk>")


FOLDERS = {
    "opt": lambda folder: write_vocab_and_merges(
        folder, opt_vocabulary(), tokenizer_config=opt_config(), config={"model_type": "opt"}
    ),
    "opt with an end": lambda folder: write_vocab_and_merges(
        folder, opt_vocabulary(), tokenizer_config=opt_config(add_eos_token=True), config={"model_type": "opt"}
    ),
    "opt, space in front": lambda folder: write_vocab_and_merges(
        folder, opt_vocabulary(), tokenizer_config=opt_config(add_prefix_space=True), config={"model_type": "opt"}
    ),
    "gpt2": lambda folder: write_vocab_and_merges(folder, byte_level("<|endoftext|>"), config={"model_type": "gpt2"}),
    "gpt2, older files": lambda folder: write_vocab_and_merges(
        folder,
        byte_level("<|endoftext|>"),
        config={"model_type": "gpt2"},
        tokenizer_config={"model_max_length": 1024},
        special_tokens_map={"bos_token": added("<s>"), "eos_token": "<|endoftext|>"},
        added_tokens={"<s>": byte_level("<|endoftext|>").get_vocab_size()},
    ),
    "qwen2": qwen_folder,
    "tokenizer.json decides": lambda folder: write_folder(
        folder,
        byte_level("<s>", "</s>", start="<s>"),
        config={"model_type": "mistral"},
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "add_bos_token": False},
    ),
    "no post-processor, but add_bos_token": lambda folder: write_folder(
        folder,
        byte_level("<s>", "</s>"),
        config={"model_type": "mistral"},
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "add_bos_token": True},
    ),
    "byte fallback": lambda folder: write_folder(
        folder,
        byte_fallback(),
        config={"model_type": "phi3"},
        tokenizer_config={"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"},
    ),
    "a name without an entry": lambda folder: write_folder(
        folder,
        byte_fallback(),
        config={"model_type": "phi3"},
        tokenizer_config={"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "pad_token": "<|im_start|>"},
    ),
}


@pytest.fixture(scope="module")
def auto_tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_equal_transformers(name: str, tmp_path: Path, auto_tokenizer: Any):
    folder = FOLDERS[name](tmp_path)
    judge, ours = auto_tokenizer.from_pretrained(folder), Tokenizer.open(folder)
    for text in TEXTS:
        assert ours.encode(text) == judge(text).input_ids
        assert ours.encode(text, add_special_tokens=False) == judge(text, add_special_tokens=False).input_ids
    named = {key: value for key, value in judge.special_tokens_map.items() if ours._backend.token_to_id(value)}
    assert {key: value for key, value in ours.special_tokens.items() if ours._backend.token_to_id(value)} == named
    assert ours.vocab_size == len(judge)


@pytest.mark.parametrize("name", FOLDERS)
def test_text_equals_transformers(name: str, tmp_path: Path, auto_tokenizer: Any):
    folder = FOLDERS[name](tmp_path)
    judge, ours = auto_tokenizer.from_pretrained(folder), Tokenizer.open(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        for skip in (True, False):
            assert ours.decode(ids, skip) == judge.decode(ids, skip_special_tokens=skip)


@needs_shared
@pytest.mark.parametrize("folder", ["phi-3", "gpt-neox-20b"])
def test_real_tokenizers_equal_transformers(folder: str, tmp_path: Path, auto_tokenizer: Any):
    model_type = "phi3" if folder == "phi-3" else "gpt_neox"
    write_folder(tmp_path, config={"model_type": model_type})
    for file in (REAL / folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    judge, ours = auto_tokenizer.from_pretrained(tmp_path), Tokenizer.open(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == judge(text).input_ids
        assert ours.decode(ids) == judge.decode(ids, skip_special_tokens=True)


# OPT where no file says that `</s>` comes first.


def test_opt_starts_with_its_end_token_by_model_type(tmp_path: Path):
    folder = write_vocab_and_merges(tmp_path, opt_vocabulary(), config={"model_type": "opt"})
    tokenizer = Tokenizer.open(folder)
    assert tokenizer.encode("red")[0] == tokenizer.bos_id == 2
    assert tokenizer.special_ids == {1, 2}


def test_opt_starts_with_its_end_token_by_vocabulary(tmp_path: Path):
    assert Tokenizer.open(write_vocab_and_merges(tmp_path, opt_vocabulary())).encode("red")[0] == 2


def test_a_file_may_say_that_nothing_comes_first(tmp_path: Path):
    folder = write_vocab_and_merges(tmp_path, opt_vocabulary(), tokenizer_config=opt_config(add_bos_token=False))
    assert 2 not in Tokenizer.open(folder).encode("red")


# Special tokens.


def test_special_tokens_in_a_text_are_read_or_spelled_out():
    for name in ("byte level", "byte fallback"):
        tokenizer = every_sort()[name]
        end = tokenizer.one_token("</s>")
        assert end in tokenizer.encode("a</s>b")
        spelled = tokenizer.encode("a</s>b", parse_special=False)
        assert end not in spelled
        assert tokenizer.decode(spelled) == "a</s>b"
        assert end in tokenizer.encode("a</s>b")  # the switch is back


def test_threads_that_spell_out_and_threads_that_read_do_not_meet():
    for name in ("byte level", "byte fallback"):
        tokenizer = every_sort()[name]
        wanted = [tokenizer.encode("a</s>b", parse_special=parsed) for parsed in (False, True)]
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(tokenizer.encode, "a</s>b", parse_special=bool(i % 2)) for i in range(200)]
        assert [job.result() for job in jobs] == wanted * 100


# Long texts.


class Watched:
    """A backend that knows no way but those that let go of the GIL, and takes its time over one text."""

    def __init__(self, backend: tokenizers.Tokenizer, slow: str) -> None:
        self._backend, self._slow, self.go_on = backend, slow, threading.Event()

    def __getattr__(self, name: str) -> Any:
        assert name not in ("encode", "decode", "encode_batch"), f"{name} holds the GIL, or makes offsets"
        return getattr(self._backend, name)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        if texts == [self._slow]:
            assert self.go_on.wait(20)
        return self._backend.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("name", ["byte level", "byte fallback"])
def test_no_text_waits_for_another_and_all_go_the_way_that_lets_go_of_the_gil(name: str):
    tokenizer = every_sort()[name]
    wanted = [tokenizer.encode("red"), tokenizer.encode("r</s>", parse_special=False), tokenizer.one_token(" red")]
    watched = tokenizer._backend = Watched(tokenizer._backend, "a long text")  # type: ignore[assignment]
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(tokenizer.encode, "a long text")
        try:
            ids = [tokenizer.encode("red"), tokenizer.encode("r</s>", parse_special=False), tokenizer.one_token(" red")]
        finally:
            watched.go_on.set()
    assert ids == wanted
    assert tokenizer.decode(long.result()) == "a long text"


def test_a_long_text_is_no_token_and_is_not_encoded_to_learn_that():
    tokenizer = every_sort()["byte level"]
    tokenizer._backend = Watched(tokenizer._backend, "a" * 2000)  # type: ignore[assignment]
    with pytest.raises(PromptError, match="a text of 2000 characters is no token; the longest of this vocabulary has"):
        tokenizer.one_token("a" * 2000)


def single_bytes(*without: str) -> tokenizers.Tokenizer:
    """A piece for each byte and no other: as many tokens as there can be."""
    letters = {*pre_tokenizers.ByteLevel.alphabet()} - {*without}
    backend = tokenizers.Tokenizer(models.BPE({letter: place for place, letter in enumerate(sorted(letters))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def normalized(*steps: Any, backend: tokenizers.Tokenizer | None = None) -> Tokenizer:
    """A tokenizer that changes texts before it reads them."""
    backend = backend or single_bytes()
    backend.normalizer = normalizers.Sequence([*steps])
    return Tokenizer(backend)


def taking_space() -> Tokenizer:
    backend = single_bytes()
    backend.add_tokens([AddedToken("🙂", lstrip=True, rstrip=True, normalized=False)])
    return Tokenizer(backend)


def word_split() -> tokenizers.Tokenizer:
    backend = single_bytes()
    split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)
    return backend


BOUNDED = {
    "byte level": lambda: every_sort()["byte level"],
    "byte fallback": lambda: every_sort()["byte fallback"],
    "composing": lambda: normalized(normalizers.NFC()),
    "composing twice": lambda: normalized(normalizers.NFKC(), normalizers.Lowercase(), normalizers.NFC()),
    "composing late": lambda: normalized(normalizers.Lowercase(), normalizers.NFC()),
    "taking space": taking_space,
    "replacing": lambda: normalized(normalizers.Replace("aaaa", "e")),
    "decomposing": lambda: normalized(normalizers.NFD(), backend=with_plain_additions(byte_level("<s>", "</s>"))),
}
UNBOUNDED = {
    "word piece": lambda: every_sort()["word pieces"],
    "unigram": lambda: every_sort()["metaspace"],
    "stripping accents": lambda: normalized(normalizers.NFD(), normalizers.StripAccents()),
    "replacing any run": lambda: normalized(normalizers.Replace(Regex("a+"), "e")),
    "dropping": lambda: normalized(normalizers.Replace("a", "")),
    "splitting at spaces": lambda: Tokenizer(word_split()),
    "no piece for a byte": lambda: Tokenizer(single_bytes("a")),
    "unknown bytes": lambda: Tokenizer(tokenizers.Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>"))),
}
RUNS = [
    "a",
    " ",
    "\n",
    "the ",
    "\u03b1\u0313\u0300\u0345",
    "\u1112\u1161\u11ab",
    "e\u0301",
    "你",
    "🙂",
    "<word> ",
    "日 本",
    "   ",
    "</s>",
]


@pytest.mark.parametrize("name", [*BOUNDED, *UNBOUNDED])
def test_a_text_never_has_fewer_tokens_than_its_length_tells(name: str):
    tokenizer = {**BOUNDED, **UNBOUNDED}[name]()
    random = Random(3)
    texts = [run * 300 for run in RUNS] + ["🙂" + " " * 300] + ["".join(random.choices(RUNS, k=200)) for _ in range(20)]
    for text in texts:
        assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False)), text[:20]
    told = [tokenizer.fewest_tokens("abc" * 20_000) for _ in range(2)]
    assert (told[0] > 400) == (name in BOUNDED)
    assert tokenizer.fewest_tokens("") == 0


@needs_shared
@pytest.mark.parametrize("name", ["gpt2", "phi-3", "gpt-neox-20b", "opt"])
def test_real_vocabularies_bound_a_text_too(name: str):
    tokenizer = Tokenizer.open(REAL / name)
    for text in [*LINES, *(run * 400 for run in RUNS)]:
        assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))
    assert tokenizer.fewest_tokens("abc " * 1_000_000) > 5000


def test_stop_ids_are_the_union_of_three_files(tmp_path: Path):
    folder = write_folder(
        tmp_path,
        byte_level("<s>", "</s>", "<|end|>"),
        tokenizer_config={"eos_token": "</s>"},
        config={"eos_token_id": 7, "bos_token_id": 0},
        generation_config={"eos_token_id": [2, 7, 9]},
    )
    tokenizer = Tokenizer.open(folder)
    assert tokenizer.eos_ids == {1, 2, 7, 9}
    assert tokenizer.bos_id == 0


def test_null_in_tokenizer_config_means_no_start_token(tmp_path: Path):
    folder = write_folder(tmp_path, byte_level("<s>"), tokenizer_config={"bos_token": None}, config={"bos_token_id": 0})
    assert Tokenizer.open(folder).bos_id is None


def test_extra_special_tokens_have_no_text(tmp_path: Path):
    folder = write_folder(
        tmp_path, byte_level("<s>"), tokenizer_config={"additional_special_tokens": ["<|x|>", added("<|y|>")]}
    )
    tokenizer = Tokenizer.open(folder)
    assert tokenizer.decode(tokenizer.encode("a<|x|>b<|y|>c")) == "abc"
    assert tokenizer.token(tokenizer.one_token("<|y|>")).special


def test_an_end_token_is_special_whatever_the_vocabulary_says(tmp_path: Path):
    backend = byte_level("<s>")
    backend.add_tokens(["<|end|>", "<|extra|>"])
    config = {"eos_token": "<|end|>", "additional_special_tokens": ["<|extra|>"]}
    tokenizer = Tokenizer.open(write_folder(tmp_path, backend, tokenizer_config=config))
    assert tokenizer.decode(tokenizer.encode("red<|extra|> fox<|end|>")) == "red fox"


def test_of_the_older_added_tokens_only_the_named_are_special(tmp_path: Path):
    backend = byte_level()
    size = backend.get_vocab_size()
    folder = write_vocab_and_merges(
        tmp_path,
        backend,
        special_tokens_map={"eos_token": "<|end|>"},
        added_tokens={"<tool>": size + 1, "<|end|>": size},
    )
    tokenizer = Tokenizer.open(folder)
    assert tokenizer.encode("<|end|><tool>") == [size, size + 1]
    assert tokenizer.special_ids == tokenizer.eos_ids == {size}
    assert tokenizer.special_ids == {
        token for token, entry in tokenizer._backend.get_added_tokens_decoder().items() if entry.special
    }
    assert tokenizer.decode([size, size + 1]) == "<tool>"


def test_doubled_start_is_noticed():
    tokenizer = every_sort()["byte fallback"]
    warning = tokenizer.doubled_bos(tokenizer.encode("<s>red"))
    assert warning is not None
    assert "<s>" in warning
    assert tokenizer.doubled_bos(tokenizer.encode("red")) is None
    assert tokenizer.doubled_bos(tokenizer.encode("red<s>")) is None
    assert tokenizer.doubled_bos(tokenizer.encode("<s>red", add_special_tokens=False)) is None
    assert tokenizer.doubled_bos([]) is None
    assert Tokenizer(byte_level()).doubled_bos([3, 3]) is None


# Single tokens.


def test_a_byte_level_token_has_its_own_bytes():
    tokenizer = every_sort()["byte level"]
    ids = tokenizer.encode("🙂 é", add_special_tokens=False)
    tokens = [tokenizer.token(token) for token in ids]
    assert b"".join(token.bytes for token in tokens) == "🙂 é".encode()
    assert all(token.text == token.bytes.decode(errors="replace") for token in tokens)
    assert tokenizer.token(tokenizer.one_token(" ")).text == " "


def test_a_byte_fallback_token_has_its_own_bytes():
    tokenizer = every_sort()["byte fallback"]
    by_name = {name: tokenizer.token(tokenizer._backend.token_to_id(name)) for name in ("▁red", "<0x0A>", "<0xF0>")}
    assert (by_name["▁red"].text, by_name["▁red"].bytes) == (" red", b" red")
    assert (by_name["<0x0A>"].text, by_name["<0x0A>"].bytes) == ("\n", b"\n")
    assert (by_name["<0xF0>"].text, by_name["<0xF0>"].bytes) == ("\ufffd", b"\xf0")


def test_other_pieces_are_shown_as_they_stand_within_a_text():
    for backend, pieces in ((word_piece(), {"red": " red", "##dish": "dish"}), (unigram(), {"▁red": " red"})):
        tokenizer = Tokenizer(backend)
        for piece, text in pieces.items():
            assert tokenizer.token(backend.token_to_id(piece)).text == text


def test_special_and_unknown_ids():
    tokenizer = every_sort()["byte level"]
    start = tokenizer.token(0)
    assert (start.text, start.bytes, start.special) == ("<s>", b"<s>", True)
    for beyond in (tokenizer.vocab_size, 10**6, 2**40, -1):
        token = tokenizer.token(beyond)
        assert (token.id, token.text, token.bytes, token.special) == (beyond, "", b"", False)
        assert tokenizer.decode([beyond]) == ""
        assert tokenizer.name_of(beyond) == f"<id {beyond}>"
    assert tokenizer.name_of(tokenizer.one_token(" red")) == "Ġred"


@pytest.mark.parametrize("name", ["byte level", "byte fallback", "byte fallback, metaspace"])
def test_every_token_that_has_a_text_is_found_by_it(name: str):
    tokenizer = every_sort()[name]
    for token in range(tokenizer.vocab_size):
        text = tokenizer.token(token).text
        if text and "\ufffd" not in text:
            assert tokenizer.token(tokenizer.one_token(text)).text == text


@pytest.mark.parametrize("name", ["byte fallback", "byte fallback, metaspace", "byte fallback, nothing stripped"])
def test_a_leading_space_is_part_of_the_token(name: str):
    tokenizer = every_sort()[name]
    assert tokenizer.name_of(tokenizer.one_token(" red")) == "▁red"
    assert tokenizer.name_of(tokenizer.one_token("red")) == "red"
    assert tokenizer.name_of(tokenizer.one_token("\n")) == "<0x0A>"
    assert tokenizer.name_of(tokenizer.one_token("</s>")) == "</s>"


def test_metaspace_tokens_are_found_too():
    tokenizer = every_sort()["metaspace"]
    assert [tokenizer.name_of(tokenizer.one_token(text)) for text in (" red", "red", " ")] == ["▁red", "red", "▁"]


def test_text_that_is_not_one_token_is_refused_with_its_pieces():
    tokenizer = every_sort()["byte fallback"]
    with pytest.raises(PromptError, match=r"' redthe' is 3 tokens, not one: ' red', 't', 'he'"):
        tokenizer.one_token(" redthe")
    with pytest.raises(PromptError, match=r"'the' is 2 tokens.*' the', with a space before it, is one"):
        tokenizer.one_token("the")
    with pytest.raises(PromptError, match=r"' ed' is 2 tokens.*'ed', without a space before it, is one"):
        tokenizer.one_token(" ed")
    with pytest.raises(PromptError, match=r"'' is 0 tokens, not one$"):
        tokenizer.one_token("")
    with pytest.raises(PromptError, match=r"(, '.'){19}, \.\.\.$"):
        tokenizer.one_token("x" * 500)


@pytest.mark.parametrize("name", every_sort())
def test_a_continuation_invents_no_space(name: str):
    if name == "word pieces":
        pytest.skip("word pieces do not keep spaces")
    tokenizer = every_sort()[name]
    before = tokenizer.encode("the red")
    for text in (" red", "red", " the red", "\n", "é the"):
        if name == "metaspace" and "\n" in text:
            continue  # that vocabulary has no line end
        ids = tokenizer.encode_continuation(text)
        assert tokenizer.decode(before + ids) == tokenizer.decode(before) + text
        assert tokenizer.bos_id not in ids


def test_a_word_that_the_vocabulary_lacks_is_no_token():
    with pytest.raises(PromptError, match=r"'zebra' is no token of this vocabulary, which reads it as '\[UNK\]'"):
        every_sort()["word pieces"].one_token("zebra")


def test_a_continuation_reads_special_tokens_or_not():
    tokenizer = every_sort()["byte fallback"]
    assert [tokenizer.name_of(token) for token in tokenizer.encode_continuation(" red</s>red")] == [
        "▁red",
        "</s>",
        "red",
    ]
    assert tokenizer.one_token("</s>") not in tokenizer.encode_continuation("</s>", parse_special=False)


def test_the_limits_of_a_training_are_not_ours(tmp_path: Path):
    backend = byte_level("<s>")
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    folder = write_folder(tmp_path, backend)
    assert 4 < len(Tokenizer.open(folder).encode(LINES[0])) < 64


# What cannot be opened.


def test_no_such_folder(tmp_path: Path):
    with pytest.raises(CheckpointNotFound, match=r"there is no folder .*nowhere"):
        Tokenizer.open(tmp_path / "nowhere")


def test_no_tokenizer(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"has no tokenizer: neither tokenizer\.json nor vocab\.json"):
        Tokenizer.open(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"nor vocab\.json with merges\.txt"):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.model", "tekken.json"])
def test_a_foreign_tokenizer_says_what_to_do(file: str, tmp_path: Path):
    (tmp_path / file).write_bytes(b"\x0a\x00")
    with pytest.raises(CheckpointError, match=rf"has {file} and no tokenizer\.json.*save_pretrained"):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": 3}', "[" * 200_000, '{"a":' * 200_000, "\x00"])
def test_a_broken_tokenizer_json_is_one_sentence(content: str, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BadConfig, match=r"tokenizer\.json is no tokenizer that can be read: .") as caught:
        Tokenizer.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_broken_vocab_and_merges(tmp_path: Path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(BadConfig, match=r"merges\.txt are no vocabulary that can be read"):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize("file", ["config", "tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("content", ["[" * 200_000, "nonsense", "[1]"])
def test_a_broken_file_beside_it_is_one_sentence(file: str, content: str, tmp_path: Path):
    folder = write_folder(tmp_path, byte_level())
    (folder / f"{file}.json").write_text(content)
    with pytest.raises(BadConfig, match=rf"{file}\.json"):
        Tokenizer.open(folder)


@pytest.mark.parametrize("content", ["[" * 200_000, "nonsense", "[1]", '{"eos_token_id": [0, -2, "x", true]}'])
def test_a_broken_hint_says_nothing(content: str, tmp_path: Path):
    folder = write_folder(tmp_path, byte_level())
    (folder / "config.json").write_text('{"eos_token_id": 3}')
    (folder / "generation_config.json").write_text(content)
    assert Tokenizer.open(folder).eos_ids - {0} == {3}


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"config": {"eos_token_id": "2"}}, r"config\.json: `eos_token_id` is '2'"),
        ({"config": {"eos_token_id": True}}, "`eos_token_id` is True"),
        ({"config": {"bos_token_id": 1.5}}, r"`bos_token_id` is 1\.5"),
        ({"tokenizer_config": {"eos_token": 3}}, "`eos_token` is 3"),
        ({"tokenizer_config": {"added_tokens_decoder": []}}, "`added_tokens_decoder` must be an object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "y"}}}}, "has 'x' where an id belongs"),
        ({"tokenizer_config": {"added_tokens_decoder": {"5": {}}}}, "no `content` for the id 5"),
        ({"added_tokens": {"<x>": "five"}}, r"added_tokens\.json: `<x>` is 'five'"),
    ],
)
def test_nonsense_in_the_files_names_the_field(files: dict[str, Any], match: str, tmp_path: Path):
    folder = write_folder(tmp_path, byte_level(), **files)
    with pytest.raises(BadConfig, match=match):
        Tokenizer.open(folder)


def test_added_tokens_that_leave_a_gap_are_refused(tmp_path: Path):
    backend = byte_level()
    size = backend.get_vocab_size()
    folder = write_vocab_and_merges(tmp_path, backend, added_tokens={"<a>": size, "<b>": size + 2})
    with pytest.raises(BadConfig, match=f"'<b>' should have the id {size + 2}, but the vocabulary makes it {size + 1}"):
        Tokenizer.open(folder)


def test_vocab_and_merges_of_a_family_we_do_not_know(tmp_path: Path):
    folder = write_vocab_and_merges(tmp_path, byte_level(), tokenizer_config={"tokenizer_class": "CLIPTokenizer"})
    with pytest.raises(CheckpointError, match=r"for CLIPTokenizer, which byhand knows only as a tokenizer\.json"):
        Tokenizer.open(folder)


def test_half_a_character_pair_is_refused():
    tokenizer = every_sort()["byte level"]
    with pytest.raises(PromptError, match=r"character 2 of the text is '\\ud83d', half of a pair"):
        tokenizer.encode("ab\ud83dcd")
    with pytest.raises(PromptError, match="text is expected, not int"):
        tokenizer.encode(5)  # type: ignore[arg-type]


def test_a_word_pattern_that_explodes_is_stopped(capfd: pytest.CaptureFixture[str]):
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a+)+\1c"), "isolated")
    with pytest.raises(ByhandError, match=r"the checkpoint's tokenizer fails on this text: .*retry-limit"):
        Tokenizer(backend).encode("a" * 40 + "b")
    capfd.readouterr()  # the library writes a trace of its own


def test_importing_loads_nothing_heavy():
    code = "import sys, byhand.text; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert not loaded & {"torch", "transformers", "jinja2", "numpy"}
    assert "tokenizers" in loaded
