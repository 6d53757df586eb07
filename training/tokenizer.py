"""Train the tokenizer and write its files: `python -m training.tokenizer`."""

import argparse
import json
import random
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from training.data import DEFAULT_CORPORA, Corpora, load_corpora, pieces
from training.model import Shape
from training.synthetic import make_chat, make_text

SPECIALS: Final = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
# Any unknown role reads as the user's, so that the template never refuses a conversation.
CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + message['content'] | trim + eos_token }}"
    "{% elif message['role'] == 'system' %}"
    "{{ '<|system|>' + message['content'] | trim }}"
    "{% else %}"
    "{{ '<|user|>' + message['content'] | trim }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def texts(corpora: Corpora, seed: int) -> list[str]:
    """What the pieces are learned from: all stories, some tales, some synthetic text."""
    rng = random.Random(seed)
    tales = [piece for tale in corpora.tales for piece in pieces(tale, 4000)]
    made = [make_text(rng) for _ in range(6000)]
    said = [content for _ in range(3000) for _, content in make_chat(rng)]
    return corpora.stories + rng.sample(tales, 300) + made + said


def build(corpora: Corpora, vocab_size: int, seed: int) -> Tokenizer:
    """A byte-level BPE tokenizer; each digit is a piece of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(corpora, seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def settings(shape: Shape) -> dict[str, object]:
    """The tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }


def write_json(path: Path, content: object) -> None:
    """Write JSON as people read it."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Train, and write tokenizer.json and tokenizer_config.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, default=DEFAULT_CORPORA)
    parser.add_argument("--out", type=Path, default=Path("byhand/assets/tiny"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape = Shape()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = build(load_corpora(args.corpora), shape.vocab_size, args.seed)
    tokenizer.save(str(args.out / "tokenizer.json"))
    write_json(args.out / "tokenizer_config.json", settings(shape))


if __name__ == "__main__":
    main()
