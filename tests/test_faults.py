"""What must never happen, whatever goes wrong: a traceback, half a file, a network connection, a long wait.

The faults that need privileges, a full disk or many minutes are driven by tests/acceptance/run.py.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import bracket
from PIL import Image, features
from typer.testing import CliRunner

import mffsr
from mffsr.cli.app import app
from mffsr.cli.console import failure_text
from mffsr.device import _cgroup_limits, choose
from mffsr.errors import DeviceError, PhotoError, is_out_of_memory
from mffsr.model import JointModel
from mffsr.photo import Photo, atomic_output, check_target, read_photo, write_photo

ENV = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
PACKAGE = Path(mffsr.__file__).parent


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    near, far, _, _ = bracket(64, 80)
    write_photo(Photo(pixels=near), tmp_path / "a.png")
    write_photo(Photo(pixels=far), tmp_path / "b.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fuse(weights: Path, *options: str):
    line = ["fuse", "a.png", "b.png", "-o", "out.png", "-q", "--weights", str(weights), *options]
    return CliRunner().invoke(app, line)


# ------------------------------------------------------------------ errors nobody foresaw


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("strange"), ["KeyError", "strange", "--debug"]),
        (NotImplementedError("'aten::x' is not implemented for the MPS device"), ["aten::x", "--device cpu"]),
        (torch.OutOfMemoryError("CUDA out of memory."), ["memory"]),
        (ValueError("x" * 5000), ["ValueError", "--debug"]),
    ],
)
def test_an_unforeseen_error_is_a_few_lines_and_no_file(folder, tiny_weights, monkeypatch, error, words):
    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(JointModel, "focus", fail)
    monkeypatch.setattr(JointModel, "render", fail)
    result = fuse(tiny_weights)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr) < 600
    assert len(result.stderr.splitlines()) <= 5
    for word in words:
        assert word in result.stderr
    assert names(folder) == ["a.png", "b.png"]
    shown = fuse(tiny_weights, "--debug")
    assert not isinstance(shown.exception, SystemExit)  # the traceback


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        "OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 999 bytes",
        "std::bad_alloc",
        "CUDA out of memory. Tried to allocate 20.00 GiB",
    ],
)
def test_every_library_s_words_for_too_little_memory_are_understood(text):
    assert failure_text(RuntimeError(text)).startswith("not enough memory")


def test_an_error_without_words_is_called_by_its_kind():
    assert failure_text(TimeoutError()) == "TimeoutError"  # callers take the first line of it


# ------------------------------------------------------------------ streams and signals


@pytest.mark.parametrize(("shell", "code"), [(">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), (">/dev/full", 1)])
def test_closed_and_full_streams_do_not_cost_the_picture(folder, tiny_weights, shell, code):
    line = f'"{sys.executable}" -m mffsr fuse a.png b.png -s 1 -o out.png --weights "{tiny_weights}" {shell}'
    result = subprocess.run(["sh", "-c", line], env=ENV, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert read_photo(folder / "out.png").size == (80, 64)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("told", [[], ["--json"]])
def test_a_batch_goes_on_where_its_results_cannot_be_printed(folder, tiny_weights, told):
    for name in ("one", "two"):
        (folder / "shoot" / name).mkdir(parents=True)
        for photo in ("a.png", "b.png"):
            shutil.copy(folder / photo, folder / "shoot" / name)
    command = [sys.executable, "-m", "mffsr", "batch", "shoot", "-o", "out", "-s", "1", "-q", *told]
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*command, "--weights", str(tiny_weights)],
            env=ENV,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (result.returncode, result.stderr) == (
        1,
        "warning: results cannot be printed: No space left on device\n",
    )
    assert {"one_x1.png", "two_x1.png"} <= set(names(folder / "out"))


@pytest.mark.parametrize("moment", [0.15, 0.4])
def test_ctrl_c_while_the_program_is_loading(folder, moment):
    line = [sys.executable, "-m", "mffsr", "fuse", "a.png", "b.png", "-o", "out.png", "-q"]
    process = subprocess.Popen(line, env=ENV, stderr=subprocess.PIPE, text=True)
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT, 1)  # before main() Python itself speaks
    assert f"{PACKAGE}{os.sep}cli" not in errors
    assert names(folder) == ["a.png", "b.png"]


# ------------------------------------------------------------------ nothing but the work


def test_no_socket_is_made_and_no_program_started(folder, tiny_weights):
    code = f"""
import sys
def watch(event, arguments):
    if event.split('.')[0] in ('socket', 'subprocess', 'urllib', 'ftplib', 'http') or event in (
        'os.system', 'os.exec', 'os.posix_spawn', 'os.fork'
    ):
        sys.stderr.write(f'forbidden: {{event}} {{arguments}}\\n')
from mffsr.__main__ import main
sys.addaudithook(watch)
sys.argv = ['mffsr', 'fuse', 'a.png', 'b.png', '-q', '-o', 'out.png', '--weights', {str(tiny_weights)!r}]
main()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "forbidden" not in result.stderr
    assert (folder / "out.png").exists()


FORBIDDEN = re.compile(
    r"\b(pickle|cPickle|dill|joblib|shelve|marshal)\b|torch\.(load|hub|jit\.load)|allow_pickle|yaml\.load"
    r"|from (torch|torch\.jit|yaml) import .*\b(load|hub)\b"
    r"|weights_only|\beval\(|\bexec\(|load_state_dict_from_url|os\.system|shell\s*=\s*True"
)


def forbidden(code: str) -> str:
    """Return what in code could run code from a file, or nothing."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""  # docstrings may speak of it
    found = FORBIDDEN.search(ast.unparse(tree).replace(".eval()", ""))  # of a network: no code
    return found[0] if found else ""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_call_could_run_code_from_a_file(path):
    assert not forbidden(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f(path):\n    return dict(torch . load(path))", True),
        ("from torch import Tensor, load", True),
        ("from pickle import loads as read", True),
        ("numpy.load(path,\n    allow_pickle=True)", True),
        ("print(eval(text))", True),
        ("if text: exec (text)", True),
        ("run(line, shell = True)", True),
        ("def f():\n    'Never eval(text).'\n    network.eval()  # nor torch.load(path)", False),
    ],
)
def test_calls_that_run_code_are_seen_wherever_they_stand(code, found):
    assert bool(forbidden(code)) == found


# ------------------------------------------------------------------ said before computing


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.png", "missing.png"],
        ["a.png", "bomb.png"],
        ["a.png", "b.png", "-o", "none/x.png"],
        ["a.png", "b.png", "-o", "x.xyz"],
        ["a.png", "b.png", "-o", "a.png", "-f"],
        ["a.png", "b.png", "--focus-map", "map.jpg"],
        ["a.png", "b.png", "--tile", "none"],
        ["a.png", "b.png", "--max-memory", "lots"],
    ],
)
def test_what_can_be_known_is_said_before_pytorch_is_even_loaded(folder, arguments):
    write_photo(Photo(pixels=np.zeros((64, 80, 3), np.uint8)), folder / "bomb.png")
    whole = bytearray((folder / "bomb.png").read_bytes())
    whole[16:24] = (29_000).to_bytes(4, "big") * 2
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(whole)
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: sys.stdout.write('torch' if 'torch' in sys.modules else 'no torch'))\n"
        "from mffsr.__main__ import main\n"
        f"sys.argv = {['mffsr', 'fuse', *arguments]!r}\nmain()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False
    )
    assert result.returncode in (1, 2)
    assert result.stdout == "no torch"
    assert "Traceback" not in result.stderr


def test_a_file_that_may_not_be_replaced_is_refused_beforehand(tmp_path, monkeypatch):
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    real = os.open

    def immutable(path, flags, *rest, **named):
        if os.fspath(path) == str(target) and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", immutable)
    with pytest.raises(PhotoError, match="not permitted"):
        check_target(target, overwrite=True)
    monkeypatch.undo()
    target.chmod(0o444)  # no matter: the file is replaced, not written into
    check_target(target, overwrite=True)


# ------------------------------------------------------------------ files


def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def synced(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def renamed(*paths):
        done.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with atomic_output(tmp_path / "x.bin", overwrite=True) as stream:
        stream.write(b"content")
    assert done == ["file", "rename", "folder"]


def encoded(suffix: str) -> bytes:
    picture = Image.fromarray(bracket(60, 80)[2])
    if suffix == ".heic":
        pillow_heif = pytest.importorskip("pillow_heif")
        picture = pillow_heif.from_pillow(picture)
    elif not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    stream = io.BytesIO()
    picture.save(stream, **({} if suffix == ".heic" else {"format": "AVIF"}))
    return stream.getvalue()


@pytest.mark.parametrize("suffix", [".avif", ".heic"])
def test_cut_boxes_are_refused(suffix, tmp_path):
    whole, path = encoded(suffix), tmp_path / f"x{suffix}"
    path.write_bytes(whole)
    assert read_photo(path).size == (80, 60)
    for percent in range(1, 100, 7):
        path.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(PhotoError, match=re.escape(str(path))):
            read_photo(path)
    rng = np.random.default_rng(4)
    for _ in range(30):
        flipped = bytearray(whole)
        flipped[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with contextlib.suppress(PhotoError):  # any other error fails the test
            read_photo(path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("could not create a primitive"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_every_library_says_out_of_memory_in_its_own_words(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("out of range"))


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_a_graphics_card_that_does_not_answer_is_an_error_of_ours(monkeypatch, precision):
    def silent(*_):
        raise RuntimeError("CUDA error: unknown error")

    monkeypatch.setattr("mffsr.device.available_devices", lambda: ["cuda:0", "cpu"])
    for question in ("mem_get_info", "get_device_capability", "get_device_name"):
        monkeypatch.setattr(torch.cuda, question, silent)
    with pytest.raises(DeviceError, match="cuda:0: CUDA error"):
        choose(precision=precision)


def test_the_least_limit_of_all_memory_cgroups_counts(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b/c\n")
    for name, limit in (("", "max"), ("a", "5000"), ("a/b", "2000"), ("a/b/c", "9000")):
        folder = tmp_path / "fs" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("1500")
        (folder / "memory.stat").write_text("inactive_file 500\n")
    assert _cgroup_limits(own, tmp_path / "fs") == [8000, 1000, 4000]
