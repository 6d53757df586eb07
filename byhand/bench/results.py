"""The results' file: every measurement with its raw bursts, an entry for each model, precision, scenario, options."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from byhand.errors import BadRequest

FORMAT = "byhand.bench"
VERSION = 1
# What an engine's speed may hang on; the rest of a processor's flags says nothing here.
FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "asimd", "asimddp", "bf16")
KEY = ("model", "precision", "scenario", "options")

Entry = dict[str, Any]


def machine(threads: int) -> dict[str, Any]:
    """Processor, cores, features and versions; no names of hosts or people."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    fields = dict(reversed([line.split(":", 1) for line in lines if ":" in line]))
    said = {name.strip(): value.strip() for name, value in fields.items()}
    flags = set(said.get("flags", said.get("Features", "")).split())
    return {
        "processor": said.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "threads": threads,
        "features": [name for name in FEATURES if name in flags],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in ("torch", "numba", "numpy") if (version := version_of(name))},
    }


def has_package(package: str) -> bool:
    """Whether this interpreter has a package."""
    return version_of(package) is not None


def version_of(package: str) -> str | None:
    """The version of a package that this interpreter has."""
    from importlib import metadata  # 30 ms, which no other command needs

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def now() -> str:
    """The time of a measurement, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


def key_of(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells an entry from the others."""
    return tuple(json.dumps(entry[field], sort_keys=True) for field in KEY)


def read(path: Path) -> list[Entry]:
    """The entries of a file; none where there is no file."""
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path} cannot be read as results: {error}", param="--out") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        raise BadRequest(f"{path} holds no results of `byhand bench`", param="--out")
    entries: list[Entry] = document["entries"]
    return entries


def document(entries: list[Entry]) -> dict[str, Any]:
    """Entries as one JSON document."""
    return {"format": FORMAT, "version": VERSION, "entries": entries}


def save(path: Path, entry: Entry) -> None:
    """Put an entry into a file, in place of the one with its key; the file is whole at every moment."""
    others = [other for other in read(path) if key_of(other) != key_of(entry)]
    part = path.with_name(path.name + ".part")
    part.write_text(_text([*others, entry]), encoding="utf-8")
    part.replace(path)


def _text(entries: list[Entry]) -> str:
    """JSON with one line for each pair of bursts: small, and a change in one entry stays there in a diff."""
    lines = json.dumps(document(_rounded(entries)), indent=1, ensure_ascii=False)
    return lines + "\n"


def _rounded(value: Any) -> Any:
    """Seven digits of every float: more says nothing, and the files are kept."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
