"""Where a token's time goes: the step's parts, measured on the real objects by wrapping their methods with clocks.

Two passes over the same work. In the first, the blocks run as one call, as they always do: the whole's times. In the
second, where the backend can, each kernel is called by itself: how a block's time is shared among its kernels.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byhand.llm import LLM

# Kernels by what a person calls the part; a product is named by its weights.
PARTS = {
    "q_proj + k_proj + v_proj": "q, k, v",
    "o_proj": "attention out",
    "out_proj": "attention out",
    "gate_proj + up_proj": "gate, up",
    "fc1": "mlp in",
    "down_proj": "down",
    "fc2": "down",
    "lm_head": "head",
    "embed_tokens": "head",
    "attend": "attention",
    "attention": "attention",
    "rms_norm": "norms",
    "layer_norm": "norms",
    "embedding": "embedding",
}
# The engine's own work on a token, by its part and the part's method that does it.
ENGINE = {
    "runner": {"forward": "model in Python", "logits": "head"},
    "sampler": {"rows_of": "choice", "choose": "choice"},
    "output": {"make_step": "record", "_read_ending": "text"},
}


@dataclass(slots=True)
class Clock:
    """Times of nested calls by name, each without the calls inside it."""

    own: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    inner: list[float] = field(default_factory=list)

    def time(self, name: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call, and book the time under a name."""
        self.inner.append(0.0)
        started = perf_counter()
        try:
            return call(*arguments, **options)
        finally:
            seconds = perf_counter() - started
            self.own[name] += seconds - self.inner.pop()
            if self.inner:
                self.inner[-1] += seconds

    def take(self) -> dict[str, float]:
        """What was booked since the last time."""
        taken = dict(self.own)
        self.own.clear()
        return taken


@contextmanager
def wrapped(thing: Any, names: list[str], clock: Clock, label: Callable[..., str]) -> Iterator[None]:
    """While inside, an object's methods are timed; `label` names a call by its method and arguments."""
    before = {name: getattr(thing, name) for name in names}

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **options: clock.time(label(name, *arguments), method, *arguments, **options)

    own = {name for name in before if name in vars(thing)}
    for name, method in before.items():
        setattr(thing, name, timed(name, method))
    try:
        yield
    finally:
        for name, method in before.items():
            if name in own:
                setattr(thing, name, method)
            else:
                delattr(thing, name)


def kernel_names(kernels: Any) -> list[str]:
    """A backend's public methods that compute; `blocks` and `prepare` only call others."""
    from byhand.kernels import Kernels

    offered = [name for name in vars(Kernels) if not name.startswith("_") and name not in ("blocks", "prepare")]
    return [name for name in offered if callable(getattr(kernels, name, None))]


def weight_names(model: Any) -> dict[int, str]:
    """The name of each matrix in its layer, by the matrix's identity."""
    from byhand.formats import Weight

    names: dict[int, str] = {}

    def visit(thing: Any, name: str) -> None:
        if isinstance(thing, Weight):
            names.setdefault(id(thing), name)
        elif isinstance(thing, list | tuple):
            for part in thing:
                visit(part, name)
        elif type(thing).__module__.startswith(("byhand.models", "byhand.layers")):
            name = getattr(thing, "name", name)
            for part_name, part in getattr(thing, "__dict__", {}).items():
                visit(part, name if part_name == "weight" else part_name)

    visit(model, "model")
    return names


def kernel_label(names: dict[int, str]) -> Callable[..., str]:
    """Names a kernel's call by the weights it is given, else by the kernel."""

    def label(kernel: str, *arguments: Any) -> str:
        flat = [part for argument in arguments for part in (argument if isinstance(argument, tuple) else (argument,))]
        found = " + ".join(names[id(part)] for part in flat if id(part) in names)
        name = kernel if kernel == "embedding" or not found else found
        return PARTS.get(name, name)

    return label


# One token after another.


def _tokens(llm: LLM, prompt: list[int], count: int, clock: Clock) -> list[dict[str, float]]:
    """Seconds by part, for each of `count` tokens after a few that warm up."""
    from byhand.sampling.params import SamplingParams

    llm.engine.cache.clear()
    run = llm.start(prompt, SamplingParams(ignore_eos=True, seed=0))
    for _ in range(4):
        run.step()
    found = []
    for _ in range(count):
        clock.take()
        started = perf_counter()
        run.step()
        seconds = perf_counter() - started
        parts = clock.take()
        found.append({**parts, "step": seconds, "engine": seconds - sum(parts.values())})
    run.stop()
    return found


def _medians(tokens: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for token in tokens for name in token)
    return {name: statistics.median(token.get(name, 0.0) for token in tokens) for name in names}


def _wrap_engine(stack: ExitStack, engine: Any, clock: Clock) -> None:
    for part, labels in ENGINE.items():
        label = partial(_label, labels)
        stack.enter_context(wrapped(getattr(engine, part), list(labels), clock, label))


def _label(labels: dict[str, str], name: str, *_: Any) -> str:
    return labels[name]


def profile(llm: LLM, prompt: list[int], count: int = 48) -> dict[str, Any]:
    """Seconds per token of the whole step and of its parts (medians), and of a block's kernels called one by one."""
    clock = Clock()
    engine = llm.engine
    kernels: Any = llm.model.kernels
    plain = _medians(_tokens(llm, prompt, count, clock))["step"]
    captured = kernels.captured_with(1) if hasattr(kernels, "captured_with") else None
    with ExitStack() as stack:
        _wrap_engine(stack, engine, clock)
        stack.enter_context(wrapped(kernels, ["blocks"], clock, lambda *_: "blocks"))
        step = _medians(_tokens(llm, prompt, count, clock))
    label = kernel_label(weight_names(llm.model))
    with ExitStack() as stack:
        fused = getattr(kernels, "fuse", None)
        if fused is not None:
            kernels.fuse = False
            stack.callback(setattr, kernels, "fuse", fused)
        _wrap_engine(stack, engine, clock)
        stack.enter_context(wrapped(kernels, kernel_names(kernels), clock, label))
        split = _medians(_tokens(llm, prompt, count, clock))
    times = {"seconds": plain, "step": step, "split": split, **record_share(step)}
    return {"context": len(prompt), "captured": captured, **times}


def record_share(step: dict[str, float]) -> dict[str, float]:
    """Shares of a step: the choice with its numbers, what is kept of it, its text, the engine between; all in all."""
    aside = {name: step.get(name, 0.0) / step["step"] for name in ("choice", "record", "text", "engine")}
    return {**{f"{name}_share": share for name, share in aside.items()}, "aside_share": sum(aside.values())}
