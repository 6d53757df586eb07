"""What a byhand model holds: the matrices that a step reads, and the bytes that no file backs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from byhand.formats import Weight
from byhand.layers import Embedding

Extent = tuple[int, int]


def _parts(thing: Any) -> Iterator[Any]:
    """What an object of the model is made of."""
    if isinstance(thing, dict):
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from thing
    else:
        yield from getattr(thing, "__dict__", {}).values()
        for kind in type(thing).__mro__:
            for name in getattr(kind, "__slots__", ()):
                yield getattr(thing, name, None)


def _walk(thing: Any, seen: set[int], skip: tuple[type, ...] = ()) -> Iterator[Any]:
    """Every object of byhand's, tensor and container that can be reached."""
    is_ours = type(thing).__module__.startswith("byhand.") or isinstance(thing, dict | list | tuple | set | frozenset)
    if id(thing) in seen or isinstance(thing, skip):
        return
    seen.add(id(thing))
    yield thing
    if is_ours:
        for part in _parts(thing):
            yield from _walk(part, seen, skip)


def matrices(model: Any) -> dict[int, Weight]:
    """Every matrix by its address, but for tables of which a step reads single rows."""
    found = (thing for thing in _walk(model, set(), (Embedding,)) if isinstance(thing, Weight))
    return {weight.tensors[0].data_ptr(): weight for weight in found}


def held_bytes(model: Any) -> int:
    """Bytes of the model's tensors that lie in memory of their own, each counted once."""
    mapped = file_extents()
    tensors = (thing for thing in _walk(model, set()) if isinstance(thing, torch.Tensor))
    owned = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(size for address, size in owned.items() if not _inside(mapped, address))


def file_extents(maps: Path = Path("/proc/self/maps")) -> list[Extent]:
    """The addresses that files are mapped to, where the system tells."""
    if not maps.exists():
        return []
    lines = (line.split(maxsplit=5) for line in maps.read_text(encoding="utf-8", errors="replace").splitlines())
    extents = (line[0].split("-") for line in lines if len(line) == 6 and line[5].startswith("/"))
    return sorted((int(start, 16), int(end, 16)) for start, end in extents)


def _inside(extents: list[Extent], address: int) -> bool:
    place = bisect_right(extents, (address, 2**64)) - 1
    return place >= 0 and address < extents[place][1]
