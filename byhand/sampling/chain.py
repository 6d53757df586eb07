"""The chain from logits to a token: which stages run, in which order, and the choice with all that is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from math import exp, inf

import numpy as np
import torch

from byhand.errors import BadRequest
from byhand.sampling import stages
from byhand.sampling.constraints import Grammars
from byhand.sampling.dice import draw, throw
from byhand.sampling.fields import plain
from byhand.sampling.look import Row, Scored, TopkLse, measure, vector
from byhand.sampling.options import StageFunction
from byhand.sampling.order import Logits, survivors
from byhand.sampling.params import CONSTRAINTS, SamplingParams, fields_table, stage_name
from byhand.sampling.stages import History
from byhand.types import ChainStage, Draw

# Every name is a field of SamplingParams and a function of stages.py. A user's own functions run between the two.
PROCESSORS = (
    "logit_bias",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "no_repeat_ngram_size",
    "min_tokens",
    "allowed_ids",
    "banned_ids",
    *CONSTRAINTS,
)
WARPERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")  # not run when greedy

TOP = 10
SHOWN = 6
LONGEST = 60
OFF = {info.name: info.off for info in fields_table()}

# A token's rank and id, and its logits in each row of the chain.
Line = tuple[int, int, tuple[float, ...]]
Stage = Callable[[History, Logits, SamplingParams], Logits]


@dataclass(frozen=True, slots=True)
class Link:
    """One row of the chain: the logits as a stage left them. The first is "raw"."""

    name: str
    setting: str
    logits: Logits
    kept: int


def _setting(value: object) -> str:
    """A stage's value as a table shows it: long lists are counted."""
    if isinstance(value, dict):
        value = tuple(f"{token}: {bias:+g}" for token, bias in value.items())
    if isinstance(value, str):
        return value if len(value) <= LONGEST else value[: LONGEST - 3] + "..."
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) if len(value) <= SHOWN else f"{len(value)} tokens"
    return plain(value)


def _own_stage(function: StageFunction, history: History, logits: Logits, params: SamplingParams) -> Logits:
    """Run a user's function on copies, and check what comes back."""
    name = stage_name(function)
    try:
        result = function(tuple(history.ids), torch.from_numpy(logits.copy()))
    except Exception as error:
        raise BadRequest(f"the stage `{name}` failed: {type(error).__name__}: {error}", param="stages") from error
    if not isinstance(result, torch.Tensor) or result.shape != (len(logits),):
        got = f"shape {tuple(result.shape)}" if isinstance(result, torch.Tensor) else type(result).__name__
        message = f"the stage `{name}` returned {got}; it must return a tensor of shape ({len(logits)},)"
        raise BadRequest(message, param="stages")
    return vector(result)


def _check(name: str, setting: str, logits: Logits, before: Sequence[Link], generated: int) -> None:
    """Refuse logits that nothing can be chosen from."""
    peak = logits.max()
    if peak > -inf and peak < inf:
        return
    told = f"`{name}` ({setting or 'a stage of yours'})"
    if peak == -inf:
        narrowed = [f"`{link.name}`" for one, link in pairwise(before) if link.kept < one.kept]
        left = f"; {' and '.join(narrowed)} before it had left {before[-1].kept}" if narrowed else ""
        message = f"{told} leaves no token that may come next ({generated} generated so far){left}"
    else:
        message = f"{told} gives NaN or +inf; only -inf may mean removed"
    raise BadRequest(message, param=name if name in OFF else "stages")


def _active(params: SamplingParams) -> list[tuple[str, str, Stage]]:
    """Name, setting and function of every stage that is not off, in order."""

    def field_stages(names: Sequence[str]) -> list[tuple[str, str, Stage]]:
        on = [name for name in names if getattr(params, name) != OFF[name]]
        return [(name, _setting(getattr(params, name)), getattr(stages, name)) for name in on]

    own = [(stage_name(function), "", partial(_own_stage, function)) for function in params.stages]
    return [*field_stages(PROCESSORS), *own, *field_stages(() if params.is_greedy else WARPERS)]


@dataclass(frozen=True, slots=True)
class Settings:
    """SamplingParams that a model can follow, and what they ask of every token. `settled` alone makes it.

    Whoever is given one checks nothing: `stages` are name, setting and function of those that are not off, in order;
    `best` is how many of the best tokens a choice tells of.
    """

    params: SamplingParams
    stages: tuple[tuple[str, str, Stage], ...]
    best: int
    is_greedy: bool

    def seeded(self, seed: int) -> Settings:
        """The same with another seed of the dice."""
        return replace(self, params=self.params.replace(seed=seed))


def settled(params: SamplingParams, vocab_size: int) -> Settings:
    """Check params against a model's vocabulary, once for all tokens."""
    params.check_vocabulary(vocab_size)
    params = params.replace()  # a copy: the mapping in them is the caller's, who may change it later
    return Settings(params, tuple(_active(params)), max(TOP, params.logprobs or 0), params.is_greedy)


def run_chain(logits: Logits, history: History, settings: Settings) -> list[Link]:
    """Raw logits, then the logits after each stage that had something to do. At least one token is always left."""
    links = [Link("raw", "", logits, len(logits))]
    for name, setting, stage in settings.stages:
        after = stage(history, links[-1].logits, settings.params)
        if after is links[-1].logits:
            continue
        _check(name, setting, after, links, len(history.ids) - history.prompt_length)
        links.append(Link(name, setting, after, int(np.count_nonzero(after > -inf))))
    return links


@dataclass(frozen=True, slots=True)
class Choice:
    """A token chosen, by id, and what the numbers around it were.

    `logprob`, `rank`, `entropy`, `margin` and `tail_mass` are raw, as in Step; `prob` and `removed_by` are what the
    chain made of the chosen token. `top` are the best by raw logit; `chain` runs parallel to it.
    """

    id: int
    logprob: float
    rank: int
    prob: float
    removed_by: str | None
    entropy: float
    margin: float
    tail_mass: float
    top: tuple[Scored, ...]
    chain: tuple[ChainStage, ...]
    draw: Draw | None
    forced: bool


def _scored(links: Sequence[Link], row: Row, norm: float, lines: Iterable[Line]) -> list[Scored]:
    """Candidates, their probabilities after the chain, and the first stage that left each at -inf."""
    raw = row.log_normalizer
    return [
        Scored(token, line[0] - raw, rank, exp(line[-1] - norm), links[line.index(-inf)].name if -inf in line else None)
        for rank, token, line in lines
    ]


def _decide(links: Sequence[Link], row: Row, u: float | None) -> tuple[int, Draw | None, float]:
    """The token, its draw, and the log normalizer after the chain. Without `u` the best one, ties by the lower id."""
    if u is None and len(links) == 1:
        return row.top_ids[0], None, row.log_normalizer
    alive = survivors(links[-1].logits)
    if u is None:
        return int(alive.ids[alive.values.argmax()]), None, alive.log_normalizer
    return *draw(alive, u), alive.log_normalizer


def choose(
    logits: torch.Tensor,
    ids: Sequence[int],
    prompt_length: int,
    settings: Settings,
    *,
    eos_ids: frozenset[int],
    position: int,
    choice: int = 0,
    seed: int = 0,
    forced: int | None = None,
    top: int = TOP,
    grammars: Grammars | None = None,
    found: TopkLse | None = None,
) -> Choice:
    """Choose the token at `position` from raw logits (vocab,), and keep everything there is to know about it.

    `ids` are prompt and continuation so far. `forced` names the token instead: the chain still shows what it would
    have made of it, and no dice are thrown. Equal arguments give equal choices: nothing is remembered between calls.
    `found` is what the kernel `topk_lse` says of the `settings.best` and the mass of the rest.
    """
    values = vector(logits)
    if forced is not None and not 0 <= forced < len(values):
        raise BadRequest(f"token {forced} cannot be forced; this model's ids end at {len(values) - 1}", param="force")
    row = measure(values, max(settings.best, top), found)
    links = run_chain(values, History(ids, prompt_length, eos_ids, grammars), settings)
    u = None if settings.is_greedy or forced is not None else throw(seed, choice, position)
    token, share, log_normalizer = _decide(links, row, u)
    token = token if forced is None else forced
    top_ids = row.top_ids
    table = [tuple(row.top_logits)]  # (links, len(top_ids))
    table += [tuple(link.logits[top_ids].tolist()) for link in links[1:]]
    best = tuple(_scored(links, row, log_normalizer, zip(count(1), top_ids, zip(*table, strict=True), strict=False)))
    if token in top_ids:
        chosen = best[top_ids.index(token)]
    else:
        line = row.rank(token), token, tuple([float(link.logits[token]) for link in links])
        [chosen] = _scored(links, row, log_normalizer, [line])
    stages = zip(links, table, strict=True)
    chain = tuple([ChainStage(link.name, link.setting, link.kept, logits) for link, logits in stages])
    _, logprob, rank, prob, removed_by = chosen
    measures = (row.entropy, row.margin, row.tail_mass)
    return Choice(token, logprob, rank, prob, removed_by, *measures, best, chain, share, forced is not None)
