"""Weight files that are damaged, foreign or hostile, and the network that is never asked. Scenarios 52–59."""

from __future__ import annotations

import ast
import os
import pickle
import random
import re
import zipfile
from pathlib import Path

import drivers
import samples
from bench import Bench, check, mib
from registry import scenario

CRAFT = Path(__file__).with_name("craft.py")


class _Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def _pickles(bench: Bench, canary: Path) -> list[Path]:
    """Write the canary as a plain pickle and inside the ZIP that PyTorch writes, under every usual name."""
    found = []
    plain = pickle.dumps(_Canary(canary))
    for suffix in (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".pkl"):
        path = bench.folder / f"plain{suffix}"
        path.write_bytes(plain)
        packed = bench.folder / f"packed{suffix}"
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("archive/data.pkl", plain)
            archive.writestr("archive/version", "3\n")
        found += [path, packed]
    return found


@scenario(52)
def pickles_run_no_code_under_any_name(bench: Bench) -> str:
    canary = bench.folder.parent / "canary"
    paths = _pickles(bench, canary)
    log = bench.folder.parent / "calls.log"
    for path in paths:
        before = [*drivers.no_network(), *drivers.strace("-o", str(log), "-e", "trace=execve,connect,socket")]
        bench.refuses("--weights", path.name, words=[path.name], codes=[1], before=before)
        text = log.read_text()
        started = len(re.findall(r"execve\([^\n]*= 0", text))
        check(started == 1, path.name, "started", started - 1, "programs")
        check("AF_INET" not in text, path.name, "opened a socket")
        check(not canary.exists(), path.name, "ran code")
    return f"{len(paths)} files: refused, no code, no program, no socket"


# What would load code with data; the words are those of Python's and PyTorch's own documentation.
FORBIDDEN = re.compile(
    r"\b(pickle|cPickle|dill|joblib|shelve|marshal)\b|torch\.(load|hub|jit\.load)|allow_pickle|yaml\.load"
    r"|weights_only|\beval\(|\bexec\(|load_state_dict_from_url|os\.system|shell\s*=\s*True"
)


@scenario(53)
def nothing_in_the_program_could_load_code_with_data(bench: Bench) -> str:
    code = "import mffsr; print(mffsr.__path__[0])"
    root = Path(bench.spawn([bench.python, "-c", code]).out.strip())
    files, faults = sorted(root.rglob("*.py")), []
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = ""  # docstrings may speak of it
        bare = ast.unparse(tree).replace(".eval()", "")  # of a network: no code
        faults += [f"{path.relative_to(root)}: {match[0]}" for match in FORBIDDEN.finditer(bare)]
    check(not faults, faults)
    check(len(files) > 20, "only", len(files), "files found in", root)
    return f"{len(files)} files without a call that could"


def _weights(bench: Bench) -> bytes:
    return bench.bundled("photo-x3").read_bytes()


@scenario(54)
def cut_weights_are_refused(bench: Bench) -> str:
    whole, path = _weights(bench), bench.folder / "cut.safetensors"
    sizes = [0, 1, 7, 8, 9, *(len(whole) * percent // 100 for percent in (1, 10, 25, 50, 75, 90, 99))]
    sizes.append(len(whole) - 1)
    for size in sizes:
        path.write_bytes(whole[:size])
        bench.refuses("--weights", path.name, words=[path.name], codes=[1])
    return f"{len(sizes)} lengths from 0 to {len(whole) - 1} bytes"


@scenario(55)
def one_flipped_bit_in_the_weights_is_found(bench: Bench) -> str:
    whole, path = _weights(bench), bench.folder / "flipped.safetensors"
    first = 8 + int.from_bytes(whole[:8], "little")  # where the values begin
    rng = random.Random(3)
    for _ in range(50):
        place = rng.randrange(first, len(whole))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        bench.refuses("--weights", path.name, words=[path.name], codes=[1])
    return "50 of 50"


@scenario(56)
def weights_of_another_kind_say_what_was_expected(bench: Bench) -> str:
    check(bench.spawn([bench.python, CRAFT, 3, "."]).code == 0, "no weights were made")
    words = {
        "extra": ["superfluous"],
        "missing": ["missing"],
        "dtype": ["type"],
        "shape": ["expected"],
        "architecture": ["expected"],
        "enormous": ["enormous.safetensors"],
    }
    most = 0
    for fault, said in words.items():
        name = f"{fault}.safetensors"
        most = max(most, bench.refuses("--weights", name, words=[name, *said], codes=[1]).peak)
    other = bench.bundled("photo-x2")
    bench.refuses("--weights", other, words=["scale 2", "scale 3"], codes=[1])
    check(most < 1 << 30, "took", mib(most))
    return f"{len(words) + 1} kinds, peak {mib(most)}"


@scenario(57)
def weights_of_a_newer_version_say_so(bench: Bench) -> str:
    check(bench.spawn([bench.python, CRAFT, 3, "."]).code == 0, "no weights were made")
    run = bench.refuses("--weights", "newer.safetensors", words=["made by a newer mffsr"], codes=[1])
    return run.err.splitlines()[0]


@scenario(58)
def paths_in_weights_are_never_opened(bench: Bench) -> str:
    check(bench.spawn([bench.python, CRAFT, 3, "."]).code == 0, "no weights were made")
    (bench.folder.parent / "secret.txt").write_text("secret")
    log = bench.folder.parent / "open.log"
    before = drivers.strace("-o", str(log), "-e", "trace=open,openat,stat,newfstatat,access,readlink")
    bench.refuses("--weights", "path.safetensors", codes=[1], before=before)
    told = log.read_text()
    bench.good("--weights", "described.safetensors", before=before)
    told += log.read_text()
    check("secret.txt" not in told, "a path in the weights was looked at")
    check("described.safetensors" in told, "nothing was traced")
    return "in the configuration (refused) and in the description"


@scenario(59)
def every_command_works_without_network_and_opens_no_socket(bench: Bench) -> str:
    samples.write_folders(bench.folder / "in", 2)
    samples.write_photos(bench.folder / "photos", 3)
    samples.write_bracket(bench.folder / "pairs", (120, 96), 4, ("x-A.png", "x-B.png"))
    small = ("--steps", 2, "--patch", 16, "--batch", 1, "--device", "cpu")
    lines: list[tuple[object, ...]] = [
        ("fuse", "a.jpg", "b.jpg", "-o", "out.png"),
        ("batch", "in", "-o", "out"),
        ("train", "srn", "--data", "photos", "--out", "run", *small),
        ("eval", "--pairs", "pairs", "--scale", 2, "-j", 1),
        ("doctor",),
    ]
    log = bench.folder.parent / "sockets.log"
    for line in lines:
        before = [*drivers.no_network(), *drivers.strace("-o", str(log), "-e", "trace=socket,connect")]
        run = bench.run(*line, before=before, patience=600)
        check(run.code == 0, line[0], run.told)
        # AF_UNIX: the C library asks a local service for the user's name.
        opened = [text for text in log.read_text().splitlines() if "AF_" in text and "AF_UNIX" not in text]
        check(not opened, line[0], opened[:3])
    return ", ".join(str(line[0]) for line in lines)
