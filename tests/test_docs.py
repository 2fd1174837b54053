"""What the documents say of the program is so: its options, its messages, its files."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

import mffsr

ROOT = Path(__file__).parents[1]
PACKAGE = Path(mffsr.__file__).parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def option_tables():
    spec = importlib.util.spec_from_file_location("option_tables", ROOT / "docs" / "options.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_options_of_the_readme_are_those_of_the_program():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = option_tables()
    assert tables.filled(text) == text, "run: python docs/options.py"
    assert len(tables.SECTION.findall(text)) == 2
    assert r"| `-s`, `--scale` 1\|2\|3\|4 | Enlargement; 1 = fusion alone | `2` |" in text
    assert text.count("`--report` PAGE.html") == 1, "options of fuse are not told again for batch"


def said_by_the_program() -> list[str]:
    """Return every text of the program, with … for what is filled in."""
    texts = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value.replace("{}", "…"))
    return texts


def quoted_messages() -> list[str]:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \| .* \| .* \|$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return said_by_the_program()


@pytest.mark.parametrize("message", quoted_messages())
def test_messages_in_troubleshooting_are_the_programs(texts, message):
    pattern = re.compile(".*".join(re.escape(part) for part in message.split("…")), re.DOTALL)
    assert max(len(part) for part in message.split("…")) >= 8, "too little to recognise it by"
    assert any(pattern.search(text) for text in texts)


def test_troubleshooting_has_many_messages():
    assert len(quoted_messages()) > 30
    lines = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(("| message", "| ---"))]
    assert len(rows) == len(quoted_messages())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), link


def test_options_in_documents_exist():
    tables = option_tables()
    known = set(re.findall(r"`(-[-\w]+)`", "".join("".join(tables.rows(c)) for c in COMMANDS)))
    known |= {"--extra-index-url"}  # of pip
    known |= {"--help", "--version", "--install-completion", "--show-completion", "--debug"}
    for document in (ROOT / "README.md", ROOT / "docs" / "troubleshooting.md"):
        for span in re.findall(r"`(--?[a-z][^`]*)`", document.read_text(encoding="utf-8")):
            assert span.split()[0] in known, f"{document.name}: {span}"


COMMANDS = ("fuse", "batch", "train", "eval", "doctor")
