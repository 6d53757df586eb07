"""Checkpoints: find a model's folder, read its config as data, name its weight files. Nothing in one ever runs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Any

from byhand.config import ConfigFields
from byhand.errors import BadConfig, BadRequest, BadWeights, CheckpointError, CheckpointNotFound
from byhand.formats import described, formats, quantized_formats
from byhand.lookalikes import (
    ADAPTER,
    adapter_note,
    check_architecture,
    check_itself,
    check_weights,
    explain_file,
    explain_folder,
    explain_repository,
)

EMBEDDED = "byhand-tiny"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

# How byhand's own quantised folders say what they hold (docs/quantisation.md).
QUANTIZATION_VERSION = 1
MIXED_VERSION = 2  # with `formats`: what tensors of another format have, by name

PICKLE_NOTE = "pytorch_model.bin is a pickle: read by torch's restricted unpickler; `byhand convert` makes safetensors"

# A safetensors header is JSON; one of 100 MB is no header.
LONGEST_HEADER = 100_000_000

# Two trainings of one architecture differ in no header and no size, so a few samples of the numbers are read too.
SAMPLES = 16
SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """What a checkpoint is called, and a digest by which it is known again elsewhere under any name.

    The digest covers config.json, and of every weight file the size and samples of the bytes. It is no proof that
    nobody changed a single number.
    """

    name: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}"


@dataclass(frozen=True, slots=True)
class StoredFormats:
    """In what matrices are stored: most in one format, and `others`, by their names, in another."""

    default: str
    others: dict[str, str]

    def of(self, tensor: str) -> str:
        """The format of a matrix by its whole name."""
        return self.others.get(tensor, self.default)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: `notes` are lines that a person should see when it is used."""

    folder: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    weight_files: tuple[Path, ...]
    identity: Identity
    notes: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        """config.json's word for the architecture."""
        name = self.config.get("model_type")
        if not isinstance(name, str):
            raise BadConfig(f"{self.folder / 'config.json'}: `model_type` is {name!r}; it must be a word")
        return name

    def quantized_as(self) -> str | None:
        """What byhand's quantised weights are stored in: "int4", or "int4 and int8" where tensors differ; else None."""
        stored = self.stored_formats()
        return None if stored is None else described({stored.default, *stored.others.values()})

    def stored_formats(self) -> StoredFormats | None:
        """The formats of the matrices where byhand quantised them; what others quantised is refused."""
        section = ConfigFields(self.config).section("quantization_config")
        if section is None:
            return None
        if (method := section.fields.get("quant_method")) != "byhand":
            kind = "names no `quant_method`" if method is None else f"is of {_shortened(method)}"
            raise BadConfig(
                f"config.json: `quantization_config` {kind}; only unquantized weights and byhand's are read"
            )
        version = section.integer("version", low=QUANTIZATION_VERSION, high=MIXED_VERSION)
        default: str = section.choice("format", ..., quantized_formats())
        group = formats()[default].group
        section.integer("group_size", low=group, high=group)
        if version == QUANTIZATION_VERSION:
            return StoredFormats(default, {})
        others = section.value("formats", ...)
        if not isinstance(others, dict) or not all(isinstance(name, str) for name in others.values()):
            section.refuse("formats", "an object: a tensor's name, and its format")
        for tensor, name in others.items():
            if name not in formats():
                section.refuse("formats", f"of known formats ({', '.join(formats())}); `{tensor}` has {name!r}")
        return StoredFormats(default, others)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(file.stat().st_size for file in self.weight_files)


def _shortened(value: object) -> str:
    return repr(value)[:60]


def read_json_object(file: Path, error: type[CheckpointError] = BadConfig) -> dict[str, Any]:
    """Read one JSON object from a file; whatever is wrong with it is one sentence."""
    check_itself(file, error)
    try:
        value = json.loads(file.read_bytes())
    except RecursionError:
        raise error(f"{file} is nested too deeply to be read") from None
    except OSError as problem:
        raise error(f"{file} cannot be read: {problem.strerror}") from problem
    except ValueError as problem:
        raise error(f"{file} is not JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise error(f"{file} holds a {type(value).__name__}; it must be a JSON object")
    return value


def read_header(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: eight bytes of its length, then itself."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        data = opened.read(length) if length <= LONGEST_HEADER else b""
    try:
        header = json.loads(data) if len(data) == length else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise BadWeights(f"{file} has no safetensors header: it is truncated, or another kind of file")
    return header


def _read_index(index: Path, suffix: str) -> tuple[Path, ...]:
    """The shards that an index names; all must lie beside it."""
    weight_map = read_json_object(index, BadWeights).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadWeights(f"{index}: `weight_map` must be an object that gives a file for every tensor")
    shards = []
    for name in sorted({str(file) for file in weight_map.values()}):
        # A name with a folder in it could point anywhere on the disk, and another suffix to a file of another kind.
        if Path(name).name != name or Path(name).suffix != suffix:
            raise BadWeights(f"{index} names the shard {name!r}; it must be a {suffix} file in the same folder")
        if not (index.parent / name).is_file():
            raise BadWeights(f"{index} names the shard {name}, which is not there")
        shards.append(index.parent / name)
    return tuple(shards)


def _choose_weights(
    folder: Path, config: dict[str, Any], weight_file: Path | None
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The weight files of a folder, safetensors before pickles, and what to tell people about them."""
    if weight_file is not None:
        return (weight_file,), ()
    for stem, notes in (("model.safetensors", ()), ("pytorch_model.bin", (PICKLE_NOTE,))):
        single, index = folder / stem, folder / f"{stem}.index.json"
        if single.is_file():
            return (single,), notes
        if index.is_file():
            return _read_index(index, single.suffix), notes
    raise explain_folder(folder, config)


def _read_hints(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """generation_config.json, and what to say where it cannot be read: a hint refuses nothing."""
    try:
        return read_json_object(file) if file.is_file() else {}, ()
    except BadConfig as error:
        return {}, (f"{error.message}; it is left out",)


def _digest(folder: Path, weight_files: tuple[Path, ...]) -> str:
    digest = blake2b((folder / "config.json").read_bytes(), digest_size=16)
    for file in weight_files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as opened:
            for sample in range(SAMPLES):
                opened.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest()


def open_folder(folder: Path, name: str, weight_file: Path | None = None, *, weights: bool = True) -> Checkpoint:
    """Open a folder that lies on this machine; `weight_file` picks one file of it."""
    if not (folder / "config.json").is_file():
        raise explain_folder(folder, None)
    config = read_json_object(folder / "config.json")
    hints, left_out = _read_hints(folder / "generation_config.json")
    weight_files, notes = _choose_weights(folder, config, weight_file) if weights else ((), ())
    for file in weight_files:
        check_weights(file)
    return Checkpoint(
        folder=folder,
        config=config,
        generation_config=hints,
        weight_files=weight_files,
        identity=Identity(name, _digest(folder, weight_files)),
        notes=notes + adapter_note(folder) + left_out,
    )


def _open_local(path: Path, weights: bool) -> Checkpoint:
    if path.is_dir():
        return open_folder(path, path.resolve().name, weights=weights)
    if path.suffix != ".safetensors":
        raise explain_file(path)
    check_weights(path)
    if path.name == "adapter_model.safetensors" and (path.parent / ADAPTER).is_file():
        raise explain_folder(path.parent, {})
    name = path.resolve().parent.name if path.stem == "model" else path.stem
    return open_folder(path.parent, name, path, weights=weights)


def _open_hub(repo_id: str, revision: str | None, weights: bool) -> Checkpoint:
    from byhand.hub import fetch, list_names

    folder = fetch(repo_id, revision, weights=False)
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER)):
        raise explain_repository(repo_id, list_names(repo_id, revision))
    described = open_folder(folder, repo_id, weights=False)
    if not weights:
        return described
    check_architecture(described.folder, described.config)  # before gigabytes are fetched
    return open_folder(fetch(repo_id, revision), repo_id)


def is_hub_id(source: str | Path) -> bool:
    """Whether a model's name is none of this machine's files or folders, but may be one of the hub's."""
    if isinstance(source, Path) or Path(source).expanduser().exists():
        return False
    return HUB_ID.fullmatch(source) is not None and not source.endswith(".safetensors")


def open_checkpoint(
    source: str | Path | None = None, revision: str | None = None, *, weights: bool = True
) -> Checkpoint:
    """Open the embedded model (None), a folder, one .safetensors file beside its config.json, or a hub id.

    `weights=False` opens only what describes the model: weights need not be there, and none are fetched.
    """
    if source is None:
        return open_folder(Path(str(files("byhand"))) / "assets" / "tiny", EMBEDDED, weights=weights)
    path = Path(source).expanduser()
    is_here = path.exists()
    if is_here and revision is not None:
        raise BadRequest(f"revision is {revision!r}, but {source} is on this machine", param="revision")
    if is_here:
        return _open_local(path, weights)
    if not is_hub_id(source):
        raise CheckpointNotFound(f"{source} does not exist: no such folder or file")
    return _open_hub(str(source), revision, weights)
