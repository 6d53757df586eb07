"""What torch computes between a block's kernels: kept as operations while it is captured, and run again in place.

What they read must be there in the next pass: what kernels or kept operations have made in this block, or what lives as
long as the layer. What comes from the batch itself, and numbers that are read out of a tensor, differ from pass to pass
in ways that nobody sees from outside: a block that asks for such is not captured.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What may be asked of a tensor without its numbers.
_SHAPES = {"size", "dim", "ndimension", "stride", "numel", "nelement", "data_ptr", "is_contiguous", "element_size"}
_SHAPES |= {"storage_offset", "untyped_storage", "__len__", "__get__", "is_floating_point", "get_device", "__hash__"}


class Gap:
    """One operation: what it is called with, and where its results belong. `start`: the kernel before which it runs."""

    __slots__ = ("arguments", "fresh", "function", "is_used", "keywords", "outs", "start")

    def __init__(self, function: Any, start: int, arguments: Any, keywords: Any) -> None:
        self.function, self.start = function, start
        self.arguments, self.keywords = arguments, keywords
        self.outs: list[Tensor] = []  # memory that stays; none where the operation writes to what it was given
        self.fresh: list[Tensor] = []  # of a view of what lives elsewhere: taken anew at each run
        self.is_used = False

    @property
    def name(self) -> str:
        """The operation, as torch names it."""
        return name_of(self.function)

    def run(self) -> None:
        """Once more, with what stands there now."""
        with torch.inference_mode():
            found = self.function(*mapped(self.arguments, _now), **mapped(self.keywords, _now))
            self.fresh = [] if self.outs else list(tensors_in(found))
            for kept, new in zip(self.outs, tensors_in(found), strict=False):
                kept.copy_(new)


class _View:
    """A tensor that another operation takes anew at each run."""

    def __init__(self, gap: Gap, index: int) -> None:
        self.gap, self.index = gap, index


def _now(argument: Any) -> Any:
    if isinstance(argument, weakref.ref):
        return argument()
    return argument.gap.fresh[argument.index] if isinstance(argument, _View) else argument


class Gaps(TorchFunctionMode):
    """While it is entered, notes every operation that is no kernel of ours. `why`: what cannot be run again, if any."""

    def __init__(self, start: Callable[[], int], holds: Callable[[Tensor], bool], changing: list[Tensor]) -> None:
        super().__init__()
        self.found: list[Gap] = []
        self.why = ""
        self._start, self._holds = start, holds  # how many kernels so far; whether a tensor lies in the blocks' memory
        self._changing = {_storage(x) for x in changing}
        self._made: dict[int, Gap | None] = {}  # what operations have made, by its memory
        self._views: dict[int, tuple[Tensor, _View]] = {}
        self._is_paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._is_paused:
            self._note(func, args, kwargs or {}, result)
        return result

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While inside, nothing is noted: for what every pass does by itself."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def knows(self, x: Tensor) -> bool:
        """Whether an operation that is kept has made x, which is then needed."""
        memory = _storage(x)
        if memory in self._made and (gap := self._made[memory]) is not None:
            gap.is_used = True
        return memory in self._made

    def needed(self) -> list[Gap]:
        """Those whose results somebody reads."""
        return [gap for gap in self.found if gap.is_used]

    def refuse(self, why: str) -> None:
        """Say what cannot be run again; the first reason stays."""
        self.why = self.why or why

    def _note(self, function: Any, args: Any, keywords: Any, result: Any) -> None:
        name, given, results = name_of(function), list(tensors_in((args, keywords))), list(tensors_in(result))
        written = written_by(name, args, keywords)
        if name == "tensor" or (not results and not written):
            if name not in _SHAPES:
                self.refuse(f"torch's {name} makes numbers of a tensor, or a tensor of numbers")
        elif any(_storage(x) in self._changing for x in given):
            self.refuse(f"torch's {name} reads the batch itself")
        elif not all(map(self._is_own, written)):
            self.refuse(f"torch's {name} writes outside of the block")
        elif written or not self._is_a_look(given, results):
            gap = Gap(function, self._start(), mapped(args, self._kept), mapped(keywords, self._kept))
            self._keep(gap, given, results, written)

    def _is_own(self, x: Tensor) -> bool:
        return self._holds(x) or self.knows(x)

    def _is_a_look(self, given: list[Tensor], results: list[Tensor]) -> bool:
        """Whether the results are other views of memory that stays."""
        shared = {_storage(x) for x in given}.intersection(map(_storage, results))
        return bool(shared) and all(map(self._is_own, given))

    def _keep(self, gap: Gap, given: list[Tensor], results: list[Tensor], written: list[Tensor]) -> None:
        self.found.append(gap)
        gap.is_used = bool(written)
        if written:
            return
        is_view = not {_storage(x) for x in given}.isdisjoint(map(_storage, results))
        gap.outs = [] if is_view else results
        for index, x in enumerate(results):
            if is_view:
                self._views[id(x)] = x, _View(gap, index)
            else:
                self._made[_storage(x)] = gap

    def _kept(self, x: Any) -> Any:
        """An argument as it is held: what lies here as it is, what lives elsewhere weakly, so that it can be let go."""
        if not isinstance(x, Tensor) or self._holds(x) or self.knows(x):
            return x
        if id(x) in self._views:
            view = self._views[id(x)][1]
            view.gap.is_used = True
            return view
        return weakref.ref(x)


def tensors_in(found: Any) -> Iterator[Tensor]:
    """The tensors among an operation's arguments or results."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple | dict):
        for each in found.values() if isinstance(found, dict) else found:
            yield from tensors_in(each)


def name_of(function: Any) -> str:
    """A function of torch's by its name."""
    return str(getattr(function, "__name__", function))


def written_by(name: str, args: Any, keywords: Any) -> list[Tensor]:
    """The tensors that a function writes to: torch's names end in _ then, or it is given `out`."""
    is_in_place = (
        name == "__setitem__"
        or (name.startswith("__i") and name.endswith("__"))
        or (name.endswith("_") and not name.endswith("__"))
    )
    first = args[:1] if is_in_place and args else ()
    return list(tensors_in((first, keywords.get("out"))))


def mapped(found: Any, change: Callable[[Any], Any]) -> Any:
    """Arguments of an operation, each changed; lists and tuples stay such."""
    if isinstance(found, list | tuple):
        return type(found)(mapped(each, change) for each in found)
    if isinstance(found, dict):
        return {name: mapped(each, change) for name, each in found.items()}
    return change(found)


def is_alive(gaps: list[Gap]) -> bool:
    """Whether all that they read from elsewhere is there still."""
    held: list[Any] = []
    mapped([(gap.arguments, gap.keywords) for gap in gaps], held.append)
    return all(each() is not None for each in held if isinstance(each, weakref.ref))


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def same_bits(ours: Tensor, truth: Tensor) -> bool:
    """Whether two float32 tensors are the same bit by bit: NaN is itself."""
    return torch.equal(ours.contiguous().view(torch.int32), truth.contiguous().view(torch.int32))
