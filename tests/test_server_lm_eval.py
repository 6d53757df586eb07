"""lm-evaluation-harness, through the server and through transformers: the same log-likelihoods, the same is_greedy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from byhand import LLM
from tests.serving import Running, served

pytest.importorskip("lm_eval", reason="lm-eval is in the extra `campaign`")
pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[1]
TINY = ROOT / "byhand" / "assets" / "tiny"
ITEMS = 200


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    yield from served(LLM())


def items(count: int) -> list[tuple[str, str]]:
    """Pieces of the repository's own prose: a context, and what follows it; some of the model's own writing too."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/sampling.md", "docs/cli.md")]
    own = [" ".join(["Once upon a time, there was a little girl named Lily. She loved to play outside."] * 3)]
    generator = random.Random(0)
    found = []
    for number in range(count):
        text = own[0] if number % 4 == 0 else texts[number % len(texts)]
        start, length = generator.randrange(len(text) // 2), generator.randrange(10, 300)
        words = text[start : start + length].split(" ")
        split = generator.randrange(1, max(2, len(words) - 1))
        context, continuation = (
            " ".join(words[:split]).strip(),
            " " + " ".join(words[split:][: 1 if number % 4 == 0 else 12]),
        )
        found.append((context or "A", continuation if continuation.strip() else " the"))
    return found


def test_the_same_likelihoods_as_through_transformers(server: Running) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    through_server = LocalCompletionsAPI(
        model="byhand-tiny",
        base_url=f"http://127.0.0.1:{server.port}/v1/completions",
        tokenizer=str(TINY),
        tokenizer_backend="huggingface",
        num_concurrent=4,
        add_bos_token=True,  # as the other backend does by itself
        max_length=2048,
        batch_size=8,
    )
    through_transformers = HFLM(pretrained=str(TINY), device="cpu", dtype="float32", batch_size=8, max_length=2048)
    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=item, idx=number)
        for number, item in enumerate(items(ITEMS))
    ]
    ours, theirs = through_server.loglikelihood(asked), through_transformers.loglikelihood(asked)
    assert len(ours) == len(theirs) == ITEMS
    largest = max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    print(f"largest difference {largest:.1e}, greedy {sum(greedy for _, greedy in ours)} times")
    assert largest <= 1e-3
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert 0 < sum(greedy for _, greedy in ours) < ITEMS
