"""A module imports only from its own layer or from those below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import mffsr

PACKAGE = Path(mffsr.__file__).parent
LAYERS = [
    {"allocator", "errors", "limits", "text", "tiles"},
    {"model", "photo", "metrics"},
    {"checkpoint", "device", "events", "frames"},
    {"render", "veil", "focus_map", "compare", "regions", "rims", "stack", "plan"},
    {"engine"},
    {"batch", "evaluate", "paper_tables", "report", "training"},
    {"cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part(name: str) -> str:
    """Return the part of the package a module belongs to; evaluate_*.py are pieces of evaluate.py."""
    return name.split("_", maxsplit=1)[0] if name.startswith(("evaluate_", "batch_")) else name


def modules(code: str) -> set[str]:
    """Return what code imports by whole names, each name that is taken from a module with the module's."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def imported(code: str) -> set[str]:
    """Return the parts of the package that code imports."""
    names = {part(name.split(".")[1]) for name in modules(code) if name.startswith("mffsr.")}
    return names - {"__version__"}


def test_imports_are_seen_whatever_their_form():
    code = "import torch.nn\nfrom torch import Tensor\nfrom mffsr import __version__, engine, fuse\n"
    code += "def f():\n    import mffsr.cli.app, os\n    from mffsr.batch_plan import inside\n"
    assert imported(code) == {"engine", "fuse", "cli", "batch"}
    assert {"torch.nn", "torch.Tensor"} < modules(code)


def test_layers():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        own = part(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
        if own in ("__init__", "weights"):  # the package itself re-exports lazily
            continue
        found = imported(path.read_text())
        wrong += [f"{path.name} imports {name}" for name in found if LEVEL.get(name, 99) > LEVEL[own]]
        if own in ("model", "photo"):
            wrong += [f"{path.name} imports {name}" for name in found - {own, *LAYERS[0]}]
    assert not wrong


def test_photos_and_metrics_do_without_torch():
    for folder in ("photo", "metrics"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert not [name for name in modules(path.read_text()) if name.split(".")[0] == "torch"], path


def test_only_the_command_line_prints():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "cli":
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert not [
                c for c in calls if isinstance(c.func, ast.Name) and c.func.id in ("print", "exit")
            ], path


def test_no_module_hides_a_name_of_the_package():
    """Importing a submodule puts it into the package under its own name."""
    assert not {path.stem for path in PACKAGE.iterdir()} & set(mffsr.__all__)


def test_what_is_imported_at_its_first_use_is_listed_before():
    """Notebooks complete names by dir()."""
    code = "import sys, mffsr; print(*dir(mffsr)); assert 'mffsr.engine' not in sys.modules"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(mffsr.__all__) <= set(listed.split())
