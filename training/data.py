"""The text: corpora cleaned and split, mixed with synthetic text, packed into batches."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training import synthetic

PAD, BOS, EOS, SYSTEM, USER, ASSISTANT = range(6)
ROLES: Final = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
DEFAULT_CORPORA: Final = Path("../shared/data/corpora")
SEPARATOR: Final = "<|endoftext|>"
PLAIN: Final = str.maketrans({
    "“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "...", "Â": None, "\r": None,
    "\u00a0": " ", "\u200b": None, "\ufeff": None,
})  # fmt: skip
NOTICE: Final = re.compile(r"Gutenberg|Copyright|www\.|E-?text", re.IGNORECASE)
SUBJECTS: Final = [
    "dog", "cat", "bird", "fish", "bear", "rabbit", "frog", "mouse", "lion", "duck", "monkey",
    "fox", "horse", "cow", "pig", "butterfly", "bee", "squirrel", "turtle", "elephant", "dragon",
    "princess", "king", "robot", "truck", "car", "boat", "train", "ball", "doll", "kite", "tree",
    "flower", "star", "moon", "cake", "apple", "hat",
]  # fmt: skip

REQUESTS: Final = [
    "Tell me a story.", "Tell me a story.", "Can you tell me a story?",
    "Please tell me a short story.", "I want to hear a story.",
]  # fmt: skip
REQUESTS_ABOUT: Final = [
    "Tell me a story about {}.", "Can you tell me a story about {}?",
    "Write a short story about {}.",
]  # fmt: skip

Ids = list[int]


def clean(text: str) -> str:
    """Plain quotes and dashes, no stray bytes, no notices, single spaces."""
    lines = text.translate(PLAIN).split("\n")
    kept = [re.sub(r"[ \t]+", " ", line).strip() for line in lines if not NOTICE.search(line)]
    return re.sub(r"\n{2,}", "\n", "\n".join(kept)).strip()


def read_corpus(path: Path) -> list[str]:
    """The cleaned documents of one corpus file, without the separators."""
    parts = path.read_text(encoding="utf-8").split(SEPARATOR)
    return [text for text in map(clean, parts) if text]


@dataclass(frozen=True, slots=True)
class Corpora:
    """All text read from disk, with one document in twenty held out."""

    stories: list[str]
    tales: list[str]
    held_out: dict[str, list[str]]


def is_held_out(index: int) -> bool:
    """Whether the document at this place is kept for the evaluation."""
    return index % 20 == 7


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Training texts and held-out texts."""
    kept = [text for index, text in enumerate(texts) if not is_held_out(index)]
    return kept, [text for index, text in enumerate(texts) if is_held_out(index)]


def pieces(text: str, at_most: int) -> list[str]:
    """Cut a long text at its sentences' ends, into pieces of about `at_most` characters."""
    cut, piece = [], ""
    for sentence in re.split(r"(?<=[.!?\n])(?=\s)", text):
        if piece and len(piece) + len(sentence) > at_most:
            cut.append(piece)
            piece = ""
        piece += sentence
    return [*cut, piece]


def load_corpora(folder: Path) -> Corpora:
    """Read, clean and split the three files."""
    stories, held_stories = split(read_corpus(folder / "tinystories_head.txt"))
    tales, held_tales = split(read_corpus(folder / "fairytaleqa.txt"))
    # The books are few and long, so it is their pieces that are held out.
    books = [p for book in read_corpus(folder / "kids_books.txt") for p in pieces(book, 20_000)]
    books, held_books = split(books)
    held_out = {"stories": held_stories, "fairy tales": held_tales, "books": held_books}
    return Corpora(stories, tales + books, held_out)


def is_sound(story: str) -> bool:
    """Whether a story is whole: it ends as a sentence does and is not too short."""
    return len(story) > 200 and story[-1] in '.!?"'


def subject_of(story: str) -> str | None:
    """The thing a story is about, if it names one of our subjects three times."""
    words = re.findall(r"[a-z]+", story.lower())
    best = max(SUBJECTS, key=words.count)
    return best if words.count(best) >= 3 else None


def story_chat(rng: random.Random, story: str) -> synthetic.Chat:
    """A request for a story, answered with one."""
    subject = subject_of(story)
    if subject and rng.random() < 0.8:
        article = "an" if subject[0] in "aeiou" else "a"
        asked = rng.choice(REQUESTS_ABOUT).format(f"{article} {subject}")
    else:
        asked = rng.choice(REQUESTS)
    return [("user", asked), ("assistant", story)]


@dataclass(slots=True)
class Mixture:
    """An endless stream of documents as ids, its shares counted in tokens."""

    tokenizer: Tokenizer
    corpora: Corpora
    rng: random.Random
    shares: dict[str, float] = field(default_factory=lambda: {
        "stories": 0.60, "story chats": 0.08, "tales": 0.10, "synthetic": 0.14, "chats": 0.08,
    })  # fmt: skip
    tokens: dict[str, int] = field(default_factory=dict)

    def encode(self, text: str) -> Ids:
        """The ids of a text, without specials."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def document(self, text: str) -> Ids:
        """A whole text between its start and its end."""
        return [BOS, *self.encode(text), EOS]

    def chat(self, turns: synthetic.Chat) -> Ids:
        """A dialogue as the chat template writes it."""
        ids = [BOS]
        for role, content in turns:
            ids += [ROLES[role], *self.encode(content)]
            ids += [EOS] if role == "assistant" else []
        return ids

    def shuffled(self, texts: list[str]) -> Iterator[str]:
        """Every text once per round, each round in a new order, forever."""
        while True:
            yield from self.rng.sample(texts, len(texts))

    def stories(self) -> Iterator[Ids]:
        """TinyStories."""
        return map(self.document, self.shuffled([s for s in self.corpora.stories if is_sound(s)]))

    def story_chats(self) -> Iterator[Ids]:
        """TinyStories as answers to a request."""
        short = [s for s in self.corpora.stories if is_sound(s) and len(s) < 900]
        return (self.chat(story_chat(self.rng, story)) for story in self.shuffled(short))

    def tales(self) -> Iterator[Ids]:
        """Old tales, cut to size; only a tale's own start and end carry the marks."""
        for tale in self.shuffled(self.corpora.tales):
            ids = self.document(tale)
            while ids:
                size = self.rng.choices([256, 512, 1024, 2048], [2, 6, 2, 1])[0]
                yield ids[:size]
                ids = ids[size:]

    def synthetic_texts(self) -> Iterator[Ids]:
        """Lists, counting, sums, capitals and questions."""
        while True:
            yield self.document(synthetic.make_text(self.rng))

    def chats(self) -> Iterator[Ids]:
        """Short dialogues."""
        while True:
            yield self.chat(synthetic.make_chat(self.rng))

    def __iter__(self) -> Iterator[Ids]:
        """Draw next from the source that is furthest below its share."""
        sources = {
            "stories": self.stories(), "story chats": self.story_chats(), "tales": self.tales(),
            "synthetic": self.synthetic_texts(), "chats": self.chats(),
        }  # fmt: skip
        self.tokens.update({name: self.tokens.get(name, 0) for name in sources})
        while True:
            name = min(sources, key=lambda name: self.tokens[name] / self.shares[name])
            ids = next(sources[name])
            self.tokens[name] += len(ids)
            yield ids


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents one after another, (N,) tokens in all; a target of -100 is not scored."""

    input_ids: Tensor
    targets: Tensor
    lengths: list[int]


def pack(documents: list[Ids]) -> Batch:
    """Lay documents end to end; nothing follows a document's last token."""
    inputs = [token for ids in documents for token in ids]
    targets = [token for ids in documents for token in [*ids[1:], -100]]
    return Batch(torch.tensor(inputs), torch.tensor(targets), [len(ids) for ids in documents])


def batches(mixture: Mixture, tokens: int) -> Iterator[Batch]:
    """Batches of at least `tokens`, made of whole documents."""
    documents: list[Ids] = []
    for ids in mixture:
        documents.append(ids)
        if sum(map(len, documents)) >= tokens:
            yield pack(documents)
            documents = []
