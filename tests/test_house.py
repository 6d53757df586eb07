"""The house keeps its shape: who imports whom, how large a room may be, what is public, how soon help comes."""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import byhand

PACKAGE = Path(byhand.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Each room, and the rooms it may import. A room may always import itself.
BASE = {"types", "errors", "html", "reprs", "collector", "user_cache", "notes", "version"}
DATA = BASE | {"formats", "config", "checkpoint", "lookalikes", "context"}
ROOMS: dict[str, set[str]] = {
    "shown": set(),
    "types": {"shown"},
    "html": {"types", "shown"},
    "reprs": {"types", "shown"},
    "jsonable": {"types", "shown"},
    "frames": {"types", "shown", "errors", "reprs"},
    "version": set(),
    "prompts": BASE | {"text"},
    "errors": set(),
    "collector": set(),
    "notes": set(),
    "children": set(),
    "user_cache": set(),
    "config": BASE,
    "context": BASE | {"config"},
    "cache": BASE,
    "formats": BASE,
    "hub": BASE | {"lookalikes"},
    "lookalikes": BASE,
    "checkpoint": BASE | {"config", "formats", "hub", "lookalikes"},
    "quantize": BASE | {"formats"},
    "shards": BASE,
    "weights": DATA,
    "convert": DATA | {"hub", "weights", "models", "kernels", "quantize", "shards"},
    "text": DATA | {"children"},
    "kernels": DATA | {"children", "cache", "weights"},
    "layers": DATA | {"cache", "weights", "kernels"},
    "models": DATA | {"cache", "weights", "kernels", "layers", "quantize"},
    "sampling": BASE,
    "engine": DATA | {"cache", "models", "sampling", "text"},
    "record": BASE | {"jsonable", "record_shapes", "sampling"},
    "run": BASE | {"engine", "sampling", "record", "texts", "prompts"},
    "replay": BASE | {"record", "run", "llm"},
    "record_shapes": {"types", "errors"},
    "opened": DATA | {"engine", "kernels", "cache", "models", "sampling", "text", "weights"},
    "texts": BASE | {"opened", "prompts", "text"},
    "llm": BASE | {"engine", "opened", "prompts", "run", "sampling", "texts"},
    "naive": {"llm"},
    "verify": BASE | {"jsonable", "llm", "naive", "run", "sampling"},
    "bench": BASE
    | {"formats"}
    | {"checkpoint", "children", "convert", "kernels", "cache", "layers", "llm", "sampling", "weights"},
    "server": BASE | {"bench", "engine", "jsonable", "llm", "record", "run", "sampling", "text", "web"},
    "web": set(),
    "cli": {
        *BASE,
        "bench",
        "checkpoint",
        "convert",
        "formats",
        "hub",
        "jsonable",
        "llm",
        "context",
        "lookalikes",
        "models",
        "record",
        "replay",
        "run",
        "sampling",
        "text",
    }
    | {"verify", "weights", "config", "engine", "server"},
    "__init__": BASE | {"frames", "jsonable", "sampling", "llm", "run", "record"},
    "__main__": {"cli"},
}
TORCH_FREE = (
    "types",
    "errors",
    "html",
    "config",
    "jsonable",
    "record",
    "record_shapes",
    "text",
    "hub",
    "checkpoint",
    "cli",
)
TORCH_FREE += (
    "server",
    "formats",
    "web",
    "children",
    "collector",
    "notes",
    "user_cache",
    "lookalikes",
    "reprs",
    "frames",
    "shown",
    "replay",
    "version",
    "prompts",
)
STDLIB_ONLY = ("types", "shown", "errors", "html", "reprs", "frames", "jsonable", "collector", "user_cache")
STDLIB_ONLY += ("lookalikes", "context", "version")
SIZES = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Size")[2]
# Lines of each room, as docs/architecture.md says.
BUDGETS = {room: int(lines.replace(",", "")) for room, lines in re.findall(r"^\| (\w+).* \| ([\d,]+) \|$", SIZES, re.M)}


def room_of(path: Path) -> str:
    """The room a file belongs to: its folder in the package, or its own name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports_of(path: Path) -> set[tuple[str, bool]]:
    """Modules imported anywhere in a file, and whether the import happens when the file is first run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)
        for inner in ast.walk(node)
    }
    found: set[tuple[str, bool]] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {(name, id(node) not in lazy) for name in names}
    return found


def is_type_checking(node: ast.AST) -> bool:
    """An `if TYPE_CHECKING:` block."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def inner_rooms(path: Path) -> set[str]:
    """The rooms of byhand that a file imports."""
    names = {name.split(".") for name in ()} or [name.split(".") for name, _ in imports_of(path)]
    return {parts[1] if len(parts) > 1 else "__init__" for parts in names if parts[0] == "byhand"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers_point_down(path: Path) -> None:
    room = room_of(path)
    assert room in ROOMS, f"{room} is a new room: say in this test what it may import"
    from_package = {"LLM", "SamplingParams", "Run", "Record", "__version__", "__all__"}
    used = {name for name in inner_rooms(path) - {room} if name not in from_package}
    assert used <= ROOMS[room], f"{room} must not import {sorted(used - ROOMS[room])}"


def knows(files: dict[str, Path]) -> dict[str, set[str]]:
    """Each module, and those that its file names in an import: at the top, in a function or for a type checker."""
    return {
        module: {
            name if name in files else name.rpartition(".")[0] for name, _ in imports_of(path) if name != module
        }.intersection(files)
        - {module}
        for module, path in files.items()
    }


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that, followed from one to the next, lead back to where one began: none where all imports point down."""
    left = dict(graph)
    while free := [module for module, known in left.items() if not known & left.keys()]:
        for module in free:
            del left[module]
    behind = {module: set[str]() for module in left}
    for module in left:
        ahead = [module]
        while ahead:
            found = (graph[ahead.pop()] & left.keys()) - behind[module]
            behind[module] |= found
            ahead += found
    rings = {frozenset(other for other in ring if module in behind[other]) for module, ring in behind.items()}
    return sorted(sorted(ring) for ring in rings if ring)


def test_no_file_knows_another_that_knows_it() -> None:
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES}
    graph = knows({name.removesuffix(".__init__"): path for path, name in names.items()})
    assert graph["byhand.llm"] >= {"byhand.texts", "byhand.run"}
    assert graph["byhand.replay"] >= {"byhand.llm"}, "what is imported for a type checker counts too"
    assert circles(graph) == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set[str](), "e": {"f", "a"}, "f": {"e"}, "g": {"a", "e"}}
    assert circles(graph) == [["a", "b", "c"], ["e", "f"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_who_may_import_torch_and_transformers(path: Path) -> None:
    room = room_of(path)
    at_once = {name.split(".")[0] for name, now in imports_of(path) if now}
    anywhere = {name.split(".")[0] for name, _ in imports_of(path)}
    if room in TORCH_FREE or path.name in ("pages.py", "scheduler.py", "params.py", "fields.py"):
        assert "torch" not in at_once
    if room in STDLIB_ONLY:
        assert at_once <= set(sys.stdlib_module_names) | {"byhand"}
    if room != "verify":
        assert "transformers" not in anywhere, "transformers is the judge; it is no part of the engine"


def test_a_model_knows_one_other_at_most() -> None:
    """An architecture that is another with one difference may import it: that one, which imports none."""
    files = [path for path in FILES if room_of(path) == "models" and path.name != "__init__.py"]
    assert len(files) >= 5
    knows_models = {
        path.stem: {name.split(".")[2] for name, _ in imports_of(path) if name.startswith("byhand.models.")}
        for path in files
    }
    for name, others in knows_models.items():
        assert len(others) <= 1, f"{name} imports {others}"
        assert not any(knows_models[other] for other in others), f"{name} imports {others}, which imports another"


def functions() -> list[tuple[str, int]]:
    """Every function of the package and its lines."""
    return [
        (f"{path.relative_to(PACKAGE)}:{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_no_room_is_a_hall() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert {str(path): count for path, count in lines.items() if count > 400} == {}
    rooms: Counter[str] = Counter()
    for path, count in lines.items():
        rooms["the" if path.parent == PACKAGE else room_of(path)] += count
    assert {room for room, count in rooms.items() if count > 200} <= set(BUDGETS)
    over = {room: rooms[room] for room, budget in BUDGETS.items() if rooms[room] > budget}
    assert over == {}, "these outgrew their budgets: docs/architecture.md says why they may"


def test_functions_are_small() -> None:
    sizes = functions()
    assert {name: size for name, size in sizes if size > 60} == {}
    assert statistics.median(size for _, size in sizes) <= 10


def test_public_names_have_docstrings() -> None:
    bare = [
        f"{path.relative_to(PACKAGE)}:{node.name}"
        for path in FILES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if not ast.get_docstring(node)
    ]
    assert bare == []


def test_exports() -> None:
    assert sorted(byhand.__all__, key=lambda name: (not name.isupper(), name)) == list(byhand.__all__)
    for name in byhand.__all__:
        assert getattr(byhand, name).__name__ == name
    assert byhand.__all__[0] == "LLM"
    with pytest.raises(AttributeError, match="no attribute 'Llama'"):
        byhand.Llama  # noqa: B018


def modules_after(statement: str) -> set[str]:
    """Modules loaded in a fresh interpreter after a statement."""
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("statement", ["import byhand", "import byhand.cli.main", "from byhand import SamplingParams"])
def test_importing_is_free(statement: str) -> None:
    loaded = {name.split(".")[0] for name in modules_after(statement)}
    assert not loaded & {
        "torch",
        "transformers",
        "tokenizers",
        "rich",
        "numba",
        "numpy",
        "safetensors",
        "jinja2",
        "pydantic",
    }


def test_the_server_loads_no_torch() -> None:
    loaded = {name.split(".")[0] for name in modules_after("import byhand.server.life, byhand.cli.serve")}
    assert "uvicorn" in loaded
    assert not loaded & {"torch", "transformers", "numba", "rich"}


def test_a_run_and_its_record_load_neither_transformers_nor_pydantic() -> None:
    loaded = modules_after("import byhand; run = byhand.LLM().start('A'); run.step(); run.record().to_json()")
    assert "torch" in loaded
    assert not loaded & {"transformers", "pydantic"}


def test_the_repository_speaks_of_the_project_alone() -> None:
    root = PACKAGE.parent
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    for name in tracked:
        path = root / name
        if (
            path.suffix in {".py", ".md", ".sh", ".toml", ".ipynb", ""}
            and path.is_file()
            and path.stat().st_size < 2**20
        ):
            text = path.read_text(encoding="utf-8")
            here = "/" + "work/"
            assert here not in text, f"{name} holds a path of one machine"
