"""Small tokenizers of every sort, built on the spot, and the folders they are opened from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from byhand.text import Tokenizer

SHARED = Path(__file__).parents[2] / "shared"
REAL = SHARED / "data" / "tokenizers"

LINES = [
    "A list of colors: red, blue, green, yellow and black.",
    "Once upon a time there was a little red fox who lived in the forest.",
    "the day, the days, the night; nine, ten, eleven. Monday, Tuesday!",
    "naïve café über straße – “quoted” … 1234567890\n\n\tdef f(x): return x + 1\n",
    "привет мир, как дела? こんにちは世界 你好 🙂🙃 👩‍👩‍👧",
]


def byte_level(*specials: str, start: str | None = None) -> tokenizers.Tokenizer:
    """GPT-2's sort, trained on a few lines; `start` is put before every text."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=[*specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES * 3, trainer)
    return with_start(backend, start)


def with_plain_additions(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Added tokens that are no specials, written in characters which byte-level pieces do not have, or do."""
    backend.add_tokens([AddedToken(text, normalized=False) for text in ("   ", "日 本", "<tool>", "é!")])
    return backend


def with_decoder(backend: tokenizers.Tokenizer, *steps: Any) -> tokenizers.Tokenizer:
    """The same pieces with another order of decoding, which is none we know by name."""
    backend.decoder = decoders.Sequence([*steps])
    return backend


def byte_fallback(start: str | None = "<s>", *, strip: bool = True, metaspace: str | None = None) -> Any:
    """Llama 2's sort: "▁" for a space, one put in front, "<0x0A>" for bytes that have no piece.

    With `metaspace` ("first", "always"), the space is put by a pre-tokenizer, as newer files do.
    """
    words = ["▁", "▁r", "ed", "▁red", "red", "▁t", "he", "▁the", "▁re", "▁b", "▁▁", "▁▁▁▁", "é", "ни", "▁п", "你"]
    singles = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.:;!?'-"]
    merges = [("▁", "r"), ("e", "d"), ("▁r", "ed"), ("r", "ed"), ("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁")]
    merges += [("▁", "b"), ("▁▁", "▁▁"), ("н", "и"), ("▁", "п")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *singles, *"нип"]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>", "<|user|>")])
    return with_start(backend, start)


def word_piece() -> tokenizers.Tokenizer:
    """BERT's sort, whose decoder is none of those we know by name."""
    pieces = ["[UNK]", "[CLS]", "red", "##dish", "blue", "a", "##b", ",", ".", "n", "'", "t", "the"]
    backend = tokenizers.Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    backend.add_special_tokens(["[UNK]", "[CLS]"])
    return backend


def unigram() -> tokenizers.Tokenizer:
    """T5's sort: a Metaspace decoder."""
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁red", -3.0), ("red", -3.5), ("▁the", -3.0)]
    pieces += [(character, -6.0) for character in "abcdefghijklmnopqrstuvwxyz,.é"]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def with_start(backend: tokenizers.Tokenizer, start: str | None) -> tokenizers.Tokenizer:
    """Put a special token before every text."""
    if start is not None:
        ids = [(start, backend.token_to_id(start))]
        backend.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=ids)
    return backend


def write_folder(folder: Path, backend: tokenizers.Tokenizer | None = None, **files: Mapping[str, Any]) -> Path:
    """A checkpoint's folder: tokenizer.json, and a JSON file for every further argument."""
    folder.mkdir(parents=True, exist_ok=True)
    if backend is not None:
        backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_vocab_and_merges(folder: Path, backend: tokenizers.Tokenizer, **files: Mapping[str, Any]) -> Path:
    """The older pair of files that GPT-2, OPT and Qwen2 came with."""
    write_folder(folder, **files)
    backend.model.save(str(folder))
    return folder


def every_sort() -> dict[str, Tokenizer]:
    """One Tokenizer of every sort whose text can be checked against the library's own decoding."""
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    other_order = (decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " "))
    return {
        "byte level": Tokenizer(with_plain_additions(byte_level("<s>", "</s>", start="<s>")), names),
        "byte level, unknown": Tokenizer(with_decoder(byte_level("<s>"), decoders.ByteLevel(), decoders.Fuse())),
        "byte fallback": Tokenizer(byte_fallback(), names),
        "byte fallback, unknown": Tokenizer(with_decoder(byte_fallback(), *other_order)),
        "byte fallback, nothing stripped": Tokenizer(byte_fallback(strip=False), {"bos_token": "<s>"}),
        "byte fallback, metaspace": Tokenizer(byte_fallback(metaspace="first"), {"bos_token": "<s>"}),
        "metaspace": Tokenizer(unigram()),
        "word pieces": Tokenizer(word_piece()),
    }
