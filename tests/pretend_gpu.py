"""A device that is none: tensors that say they are elsewhere, so that code that mixes devices fails as it would there.

The numbers lie on the CPU, inside. Outside a tensor is on torch's "meta" device, which needs no driver: an operation
on it and on a tensor of the CPU is refused, and so are its address and its numpy array. What `device="cuda"` asks for
becomes such a tensor. Kernels of a real GPU are not tested here; tests/test_gpu.py runs on one where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

# What torch allows between devices: to copy, and to choose rows by numbers that lie on the CPU.
MIXED = ("aten::copy_", "__getitem__", "__setitem__")
# What would make a tensor of its own beside these: on "meta", where there are no numbers.
MAKING = ("__getitem__", "__setitem__", "where")


class Elsewhere(torch.Tensor):
    """A tensor of the pretended device."""

    inside: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inside: torch.Tensor) -> Elsewhere:
        place = {"strides": inside.stride(), "storage_offset": inside.storage_offset(), "dtype": inside.dtype}
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(cls, inside.shape, device="meta", **place)  # type: ignore[attr-defined]
        made.inside = inside
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        refuse_two_devices(func.name(), (args, kwargs))
        result = func(*tree_map(inner, args), **tree_map(inner, kwargs or {}))
        return args[0] if func._schema.is_mutable else tree_map(outer, result)


def inner(x: Any) -> Any:
    """What lies inside."""
    return x.inside if isinstance(x, Elsewhere) else x


def outer(x: Any) -> Any:
    """A tensor as one of the pretended device."""
    return Elsewhere(x) if isinstance(x, torch.Tensor) else x


def refuse_two_devices(name: str, arguments: Any) -> None:
    """Fail as torch does, if there is a tensor of the CPU among them that is no single number."""
    tensors = [x for x in tree_leaves(arguments) if isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere)]
    if name not in MIXED and any(x.dim() for x in tensors):
        raise RuntimeError(f"{name}: tensors on two devices")


def is_elsewhere(device: Any) -> bool:
    """Whether a device is the pretended one."""
    return device is not None and torch.device(device).type in ("cuda", "meta")


class PretendGpu(TorchFunctionMode):
    """Inside, torch makes and moves tensors to the pretended device."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), dict(kwargs or {})
        x = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if x is not None and name in ("to", "cpu"):
            return self._move(x, name, args[1:], kwargs)
        if isinstance(x, Elsewhere) and name in ("numpy", "data_ptr"):
            raise TypeError(f"{name}: the tensor is on a GPU")
        if isinstance(x, Elsewhere) and name in ("tolist", "item"):
            return getattr(x.inside, name)()
        if name in MAKING and any(isinstance(each, Elsewhere) for each in args):
            refuse_two_devices(name, args)
            return outer(func(*tree_map(inner, args), **kwargs))
        if is_elsewhere(kwargs.get("device")):
            return outer(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)

    def _move(self, x: torch.Tensor, name: str, rest: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
        named = [place for place in rest if isinstance(place, str | torch.device)]
        others = [value for value in rest if not isinstance(value, str | torch.device)]
        device = "cpu" if name == "cpu" else kwargs.pop("device", named[0] if named else None)
        was, goal = isinstance(x, Elsewhere), is_elsewhere(device or x.device)
        moved: torch.Tensor = inner(x)
        if others or kwargs:
            moved = moved.to(*others, **kwargs)
        if moved is inner(x) and goal == was:
            return x
        moved = moved if goal == was else moved.clone()
        return Elsewhere(moved) if goal else moved


def pretend(monkeypatch: pytest.MonkeyPatch) -> PretendGpu:
    """Let byhand believe that there is a GPU: gives what to enter."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.inference_mode", torch.no_grad)  # its tensors cannot lie inside others
    return PretendGpu()
