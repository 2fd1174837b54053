"""A module imports only from its own layer or from those below it."""

from __future__ import annotations

import ast
from pathlib import Path

import mffsr

PACKAGE = Path(mffsr.__file__).parent
LAYERS = [
    {"allocator", "errors", "limits", "text", "tiles"},
    {"model", "photo", "metrics"},
    {"checkpoint", "device", "events", "frames"},
    {"render", "focus_map", "compare", "regions", "stack", "plan"},
    {"engine"},
    {"batch", "evaluate", "paper_tables", "report", "training"},
    {"cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part(name: str) -> str:
    """Return the part of the package a module belongs to; evaluate_*.py are pieces of evaluate.py."""
    return name.split("_", maxsplit=1)[0] if name.startswith(("evaluate_", "batch_")) else name


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("mffsr.")
            and not node.level
        ):
            names.add(part(node.module.split(".")[1]))
        elif isinstance(node, ast.Import):
            names |= {part(a.name.split(".")[1]) for a in node.names if a.name.startswith("mffsr.")}
    return names


def test_layers():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        own = part(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
        if own in ("__init__", "weights"):  # the package itself re-exports lazily
            continue
        wrong += [f"{path.name} imports {name}" for name in imported(path) if LEVEL[name] > LEVEL[own]]
        if own in ("model", "photo"):
            wrong += [f"{path.name} imports {name}" for name in imported(path) - {own, *LAYERS[0]}]
    assert not wrong


def test_photos_and_metrics_do_without_torch():
    for folder in ("photo", "metrics"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert "import torch" not in path.read_text(), path


def test_only_the_command_line_prints():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "cli":
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert not [
                c for c in calls if isinstance(c.func, ast.Name) and c.func.id in ("print", "exit")
            ], path


def test_nothing_loads_pickles():
    banned = ("torch.load", "pickle", "allow_pickle=True", "yaml.load", "torch.jit.load", "eval(", "exec(")
    for path in PACKAGE.rglob("*.py"):
        code = ast.unparse(ast.parse(path.read_text()))
        found = [
            word
            for word in banned
            if any(line.strip().startswith(("import", "from")) and word in line for line in code.splitlines())
            or f" {word}(" in code
        ]
        assert not found, (path, found)


def test_no_module_hides_a_name_of_the_package():
    """Importing a submodule puts it into the package under its own name."""
    assert not {path.stem for path in PACKAGE.iterdir()} & set(mffsr.__all__)
