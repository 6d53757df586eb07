"""byhand against transformers' `generate`: the same ids or not, where they part, and both margins there.

The judge is run honestly: float32 weights, eager attention, the ids themselves (nothing is tokenized twice), an
attention mask of ones (without one, transformers masks every token that equals the padding id), and none of the
checkpoint's own sampling defaults. The report says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch

from byhand import naive
from byhand.errors import BadRequest, MissingExtra
from byhand.jsonable import Json
from byhand.llm import LLM, Prompt
from byhand.sampling.dice import fresh_seed, throw
from byhand.sampling.params import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the extra `verify` holds.
REQUIREMENT = "transformers>=5.0"

# A step whose best two candidates are closer than this (nats) may fall either way by rounding alone.
TIE_MARGIN = 1e-4

DEFAULT_PROMPTS = (
    "A list of colors: red",
    "Once upon a time",
    "The capital of France is",
    "1, 2, 3, 4,",
    "In the morning the sun",
    "One day, a little girl named",
    "Q: What color is the sky?\nA:",
    "Monday, Tuesday,",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one prompt. Where it differs: the place among the new tokens, both ids, both margins in nats."""

    method: str
    prompt: str
    tokens: int
    equal: bool
    place: int | None = None
    expected: int | None = None
    got: int | None = None
    expected_margin: float | None = None
    got_margin: float | None = None

    @property
    def is_tie(self) -> bool:
        """True where the judge's best two were too close for float32 to tell apart."""
        return not self.equal and self.expected_margin is not None and self.expected_margin < TIE_MARGIN

    @property
    def is_right(self) -> bool:
        """Equal, or different only at a rounding tie."""
        return self.equal or self.is_tie


@dataclass(frozen=True, slots=True)
class Report:
    """All rows, and how the judge was run."""

    model: str
    judge: str
    rows: tuple[Row, ...]

    @property
    def equal(self) -> bool:
        """True when no row differs other than by a tie."""
        return all(row.is_right for row in self.rows)

    def to_json(self) -> Json:
        """The report as `verify --json` prints it."""
        rows = [{**{name: getattr(row, name) for name in Row.__slots__}, "is_tie": row.is_tie} for row in self.rows]
        return {"model": self.model, "judge": self.judge, "equal": self.equal, "rows": rows}


@dataclass(frozen=True, slots=True)
class _Answer:
    """New ids, and the margin in nats between the best two at each of them."""

    ids: list[int]
    margins: list[float]


def verify(
    llm: LLM,
    prompts: Sequence[Prompt] = DEFAULT_PROMPTS,
    *,
    max_tokens: int = 40,
    sampled: bool = False,
    seed: int | None = None,
    progress: Callable[[str], None] = lambda method: None,
) -> Report:
    """Run the judge, the naive loop, the cached loop, a batch and (if asked) a sampled run; compare the ids.

    `progress` hears the name of each method as it begins.
    """
    if max_tokens < 1:
        raise BadRequest(f"`max_tokens` is {max_tokens}; it must be at least 1", param="max_tokens")
    if (weight_format := llm.checkpoint.quantized_as()) is not None:
        raise BadRequest(
            f"{llm.name} is quantised to {weight_format}, which transformers cannot read",
            hint="verify what it was made from",
        )
    judge = _Judge(llm, max_tokens)
    all_ids = [llm.encode(prompt) for prompt in prompts]
    names = [prompt if isinstance(prompt, str) else str(ids) for prompt, ids in zip(prompts, all_ids, strict=True)]
    progress("transformers generate")
    expected = [judge.greedy(ids) for ids in all_ids]
    rows: list[Row] = []
    for method, answers in _greedy_methods(llm, max_tokens).items():
        progress(method)
        rows += _compare_all(method, names, expected, answers(all_ids))
    if sampled:
        progress("sampled")
        params = _sampling(max_tokens, seed)
        expected = [judge.sampled(ids, params) for ids in all_ids]
        rows += _compare_all("sampled, the same dice", names, expected, [_cached(llm, ids, params) for ids in all_ids])
    return Report(llm.name, judge.description, tuple(rows))


def _sampling(max_tokens: int, seed: int | None) -> SamplingParams:
    return SamplingParams(
        temperature=0.8,
        top_k=50,
        top_p=0.95,
        repetition_penalty=1.1,
        max_tokens=max_tokens,
        seed=fresh_seed() if seed is None else seed,
    )


def _greedy_methods(llm: LLM, max_tokens: int) -> dict[str, Callable[[list[list[int]]], list[_Answer]]]:
    greedy = SamplingParams(max_tokens=max_tokens)
    return {
        "naive loop": lambda all_ids: [_naive(llm, ids, max_tokens) for ids in all_ids],
        "cached loop": lambda all_ids: [_cached(llm, ids, greedy) for ids in all_ids],
        "batch": lambda all_ids: _batch(llm, all_ids, greedy),
    }


def _naive(llm: LLM, ids: list[int], max_tokens: int) -> _Answer:
    room = min(max_tokens, llm.context_length - len(ids))
    new_ids = naive.generate(llm, ids, room)[len(ids) :]
    logits = llm.logits(ids + new_ids)[len(ids) - 1 : -1] if new_ids else torch.empty(0, llm.vocab_size)
    return _Answer(new_ids, [_margin(row) for row in logits])


def _cached(llm: LLM, ids: list[int], params: SamplingParams) -> _Answer:
    steps = list(llm.start(ids, params))
    return _Answer([step.token.id for step in steps], [step.margin for step in steps])


def _batch(llm: LLM, all_ids: list[list[int]], params: SamplingParams) -> list[_Answer]:
    return [_Answer(one.ids, [step.margin for step in one.steps]) for one in llm.generate(all_ids, params)]


def _compare_all(method: str, names: list[str], expected: list[_Answer], answers: list[_Answer]) -> list[Row]:
    return [_compare(method, *three) for three in zip(names, expected, answers, strict=True)]


def _compare(method: str, name: str, expected: _Answer, got: _Answer) -> Row:
    row = Row(method, name, len(expected.ids), expected.ids == got.ids)
    if row.equal:
        return row
    pairs = zip(expected.ids, got.ids, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected.ids), len(got.ids)))
    return replace(
        row,
        place=place,
        expected=_at(expected.ids, place),
        got=_at(got.ids, place),
        expected_margin=_at(expected.margins, place),
        got_margin=_at(got.margins, place),
    )


def _at(values: list[Any], place: int) -> Any:
    return values[place] if place < len(values) else None


def _margin(logits: torch.Tensor) -> float:
    finite = logits[logits.isfinite()]
    best = finite.topk(min(2, len(finite))).values.tolist()
    margin = best[0] - best[-1] if len(best) == 2 else float("inf")
    return margin if isfinite(margin) else float("inf")


class _Judge:
    """transformers' own model and its `generate`."""

    def __init__(self, llm: LLM, max_tokens: int) -> None:
        self.llm = llm
        self.max_tokens = max_tokens
        self.transformers = _transformers()
        self.model = self._open()
        self.description = (
            f"transformers {self.transformers.__version__} generate: float32 weights, eager attention, token ids as "
            "they are, attention mask of ones, no sampling defaults of the checkpoint's"
        )

    def _open(self) -> PreTrainedModel:
        _quiet(self.transformers)
        model: PreTrainedModel = self.transformers.AutoModelForCausalLM.from_pretrained(
            str(self.llm.checkpoint.folder), dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
        # What generate is not told it would take from here: the checkpoint's temperature, penalties and lengths.
        model.generation_config = self.transformers.GenerationConfig()
        return model

    def greedy(self, ids: list[int]) -> _Answer:
        """generate(do_sample=False)."""
        return self._generate(ids, [])

    def sampled(self, ids: list[int], params: SamplingParams) -> _Answer:
        """The same processors as ours, of transformers' own making, and our dice at their end."""
        t = self.transformers
        processors = [
            t.RepetitionPenaltyLogitsProcessor(params.repetition_penalty),
            t.TemperatureLogitsWarper(params.temperature),
            t.TopKLogitsWarper(params.top_k),
            t.TopPLogitsWarper(params.top_p),
            _dice(params.seed or 0),
        ]
        return self._generate(ids, processors)

    def _generate(self, ids: list[int], processors: list[Any]) -> _Answer:
        room = min(self.max_tokens, self.llm.context_length - len(ids))
        if room < 1:
            return _Answer([], [])
        input_ids = torch.tensor([ids])
        output: Any = self.model.generate(  # type: ignore[operator]
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=self.transformers.GenerationConfig(
                do_sample=False,
                max_new_tokens=room,
                eos_token_id=sorted(self.llm.eos_ids) or None,
                pad_token_id=min(self.llm.eos_ids, default=0),
                return_dict_in_generate=True,
                output_logits=True,
            ),
            logits_processor=self.transformers.LogitsProcessorList(processors),
        )
        return _Answer(output.sequences[0, len(ids) :].tolist(), [_margin(row[0]) for row in output.logits])


def _dice(seed: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A last processor that leaves only the token our dice fall on, written anew: a full sort, a full sum."""

    def draw(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        probs = scores[0].double().softmax(-1)
        ranked = probs.sort(descending=True, stable=True)
        below = ranked.values.cumsum(-1) <= throw(seed, 0, input_ids.shape[1])
        chosen = ranked.indices[min(int(below.sum()), int((probs > 0).sum()) - 1)]
        return torch.full_like(scores, float("-inf")).index_fill(1, chosen, 0.0)

    return draw


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        # Into the Python that runs this, by the package's own name: so it works from any folder, checkout or wheel.
        hint = f"{sys.executable} -m pip install '{REQUIREMENT}'"
        raise MissingExtra("verify needs transformers, the judge", hint=hint) from None
    return transformers


def _quiet(transformers: Any) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
