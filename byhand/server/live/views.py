"""The server's frames, made from what the engine tells. No transport here."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from byhand.engine.sequence import Sequence
from byhand.errors import BadRequest
from byhand.jsonable import prediction_to_json, token_to_json
from byhand.server.defaults import suggested
from byhand.types import Position

if TYPE_CHECKING:
    from byhand.engine.engine import Engine
    from byhand.llm import LLM

Json = dict[str, Any]

NAMED = 64  # tokens of a row of logits that are sent with their text


def model_view(llm: LLM) -> Json:
    """What a client should know of the model; a folder's path is nobody's business."""
    return {
        "name": PurePath(llm.name).name,
        "type": llm.identity.model_type,
        "dtype": llm.identity.dtype,
        "vocab_size": llm.vocab_size,
        "context_length": llm.context_length,
        "eos_ids": sorted(llm.eos_ids),
        "digest": llm.identity.digest,
        "suggested": suggested(llm),
    }


def position_view(at: Position) -> Json:
    """A prediction after a prompt position."""
    return {"position": at.position, "token": token_to_json(at.token), **prediction_to_json(at)}


def run_view(llm: LLM, run: Sequence) -> Json:
    """A run as it stands: all that a client needs to show it again."""
    return {
        "ids": list(run.ids),
        "tokens": [token_to_json(llm.tokenizer.token(token)) for token in run.ids],
        "prompt_length": run.prompt_length,
        "computed": run.computed,
        "text": run.text,
        "params": run.params.to_json(),
        "finish_reason": run.finish_reason,
        "stop_reason": run.stop_reason,
    }


def change_view(run: Sequence, dropped: int) -> Json:
    """What an operation left."""
    return {
        "ids": list(run.ids),
        "computed": run.computed,
        "dropped": dropped,
        "prompt_length": run.prompt_length,
        "text": run.text,
        "finish_reason": run.finish_reason,
    }


def logits_view(llm: LLM, run: Sequence, index: int) -> Json:
    """The raw logits before token `index` of the continuation, or before the one to come; the best with their names."""
    position = run.prompt_length + index
    line = run.last_logits if position == len(run.ids) else run.recent.find(position) if run.recent else None
    if line is None:
        known = [place - run.prompt_length for place in run.recent.positions] if run.recent else []
        known += [run.generated] if run.last_logits is not None else []
        listed = f"{min(known)} to {max(known)}" if known else "none"
        raise BadRequest(
            f"the logits of step {index} are not kept; those of the last steps are: {listed}", param="index"
        )
    row = line.logits
    data = b64encode(row.numpy().astype("<f4").tobytes()).decode()
    best = row.topk(min(NAMED, len(row))).indices.tolist()
    tokens = [token_to_json(llm.tokenizer.token(token)) for token in best]
    return {"index": index, "dtype": "float32", "shape": [len(row)], "data": data, "tokens": tokens}


def pages_view(engine: Engine, runs: dict[str, Sequence]) -> Json:
    """Who holds how many pages, and how many of them others hold too."""
    groups = engine.cache.groups
    pages = {name: list(_pages_of(run)) for name, run in runs.items()}
    each = {
        name: {
            "pages": len(pages[name]),
            "shared": sum(groups[group].pool.holders(page) > 1 for group, page in pages[name]),
            "length": len(run.ids),
            "computed": run.computed,
            "finish_reason": run.finish_reason,
        }
        for name, run in runs.items()
    }
    held = Counter(page for some in pages.values() for page in some)
    shared = sum(count > 1 for count in held.values())
    size = sum(groups[group].page_bytes for group, _ in held)
    return {"runs": each, "pages": len(held), "shared": shared, "bytes": size}


def _pages_of(run: Sequence) -> Iterator[tuple[int, int]]:
    """Every page that a run holds, as (group of layers, page)."""
    return ((group, page) for group, table in enumerate(run.page_tables) for page in table)


def record_view(llm: LLM, run: Sequence) -> Json:
    """The run's record, as `Run.record` makes it."""
    from byhand.run import Run

    identity = replace(llm.identity, name=PurePath(llm.name).name)
    return replace(Run.borrow(llm, run).record(), model=identity).to_json()
