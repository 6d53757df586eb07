"""What is measured: each scenario says how many prompts of which length, how many new tokens, and which time counts."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from byhand.bench.ratios import gap
from byhand.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of burst. What counts, by `kind`: decode, the time between tokens; else the whole call."""

    name: str
    kind: str
    batch: int
    prompt: int
    new: int
    rounds: int
    about: str

    @property
    def continues(self) -> bool:
        """Whether bursts go on where the last one ended, in engines that can: a long context is read once."""
        return self.name.startswith("context")

    @property
    def length(self) -> int:
        """Tokens a run has in the end."""
        return self.prompt + self.new

    def seconds(self, burst: dict[str, Any]) -> float:
        """The time that counts, of one burst: a token's, or the whole call's."""
        return gap(burst["stamps"]) if self.kind == "decode" else float(burst["seconds"])

    def per_second(self, seconds: float) -> float:
        """Tokens a second at that time: new ones, or for a prefill those read."""
        if self.kind == "decode":
            return 1 / seconds
        return self.batch * (self.prompt if self.kind == "prefill" else self.new) / seconds


def _all() -> Iterable[Scenario]:
    yield Scenario("decode", "decode", 1, 128, 24, 9, "time per token of one run")
    for batch in (4, 8, 16, 32):
        yield Scenario(f"batch-{batch}", "batch", batch, 128, 64, 3, f"{batch} runs of 128 + 64 tokens at once")
    for prompt in (128, 512, 2048):
        yield Scenario(f"prefill-{prompt}", "prefill", 1, prompt, 1, 5, f"a prompt of {prompt} tokens, one new")
    for prompt in (128, 1024, 4096):
        yield Scenario(f"context-{prompt}", "decode", 1, prompt, 24, 5, f"time per token behind {prompt} others")
    yield Scenario("cold", "cold", 1, 32, 1, 3, "a fresh process to its first token, and its memory")
    yield Scenario("forks", "forks", 8, 512, 32, 3, "8 forks of one prompt against 8 runs of their own")
    yield Scenario("prefix", "prefix", 1, 512, 8, 5, "a prompt that was read before against a new one")
    yield Scenario("profile", "profile", 1, 128, 48, 1, "where a token's time goes")


SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _all()}


def scenarios_named(names: Iterable[str]) -> list[Scenario]:
    """Scenarios by name; a family's name ("batch") means all of it, "all" means everything."""
    found: list[Scenario] = []
    for name in names:
        members = [each for each in SCENARIOS.values() if name in (each.name, each.name.partition("-")[0], "all")]
        if not members:
            known = ", ".join((*SCENARIOS, "batch", "prefill", "context", "all"))
            raise BadRequest(f"--scenario is {name!r}; it must be one of {known}", param="--scenario")
        found += [member for member in members if member not in found]
    return found


def prompts(scenario: Scenario, vocab_size: int, seed: str) -> list[list[int]]:
    """Random prompts, others for every seed, so that no cache of prefixes helps anyone."""
    dice = random.Random(f"{scenario.name} {seed}")
    first = min(300, vocab_size // 4)  # past the special tokens and the single bytes
    return [[dice.randrange(first, vocab_size) for _ in range(scenario.prompt)] for _ in range(scenario.batch)]
