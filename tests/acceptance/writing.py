"""The output: killed, full, forbidden, taken, shared. Scenarios 1–5 and 8–18."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import drivers
import numpy as np
import samples
from bench import SMALL, Bench, check, complete, leftovers, sha
from registry import scenario

SIZE = (SMALL[0] * 3, SMALL[1] * 3)  # of the output
RENAMES = "rename,renameat,renameat2"


def _writes(bench: Bench, folder: Path) -> int:
    """Return how many write calls a whole run makes."""
    log = folder / "writes"
    run = bench.good(out="counted.png", before=drivers.strace("-o", str(log), "-e", "trace=write"))
    check(run.code == 0, run.told)
    (bench.folder / "counted.png").unlink()
    count = len(re.findall(r"\bwrite\(", log.read_text()))
    log.unlink()
    return count


def _killing_drivers(bench: Bench) -> list[list[str]]:
    count = _writes(bench, bench.folder)
    places = sorted(set(np.linspace(1, count, 20).round().astype(int).tolist()))
    drives = [drivers.kill_at("fsync", 1), drivers.kill_at("fsync", 2), drivers.kill_at(RENAMES, 1)]
    return drives + [drivers.kill_at("write", number) for number in places]


@scenario(1)
def killed_at_every_step_of_the_write_leaves_no_half_picture(bench: Bench) -> str:
    target, killed = bench.folder / "out.png", 0
    drives = _killing_drivers(bench)
    for before in drives:
        run = bench.fuse(before=before)
        check(run.code in (-9, 137, 0), run.told)
        killed += run.code != 0
        if target.exists():
            check(complete(target) == SIZE, "an output of another size")
            target.unlink()
    check(killed >= 4, "only", killed, "runs were killed")
    bench.good()
    check(complete(target) == SIZE, "another size after the plain run")
    return f"{len(drives)} runs, {killed} killed, then a plain run succeeded"


@scenario(2)
def killed_while_it_replaces_a_picture_leaves_the_old_or_the_new(bench: Bench) -> str:
    target = bench.folder / "out.png"
    bench.good()
    new = sha(target)
    samples.write(target, samples.textured(SIZE, 9))
    old, seen = sha(target), []
    kept = target.read_bytes()
    for before in _killing_drivers(bench):
        bench.fuse("-f", before=before)
        seen.append(sha(target))
        check(seen[-1] in (old, new), "neither the old picture nor the new one")
        target.write_bytes(kept)
    return f"{len(seen)} runs: {seen.count(old)} times the old one, {seen.count(new)} times the new one"


@scenario(3)
def a_full_disk_is_named_and_stays_empty(bench: Bench) -> str:
    with drivers.disk(bench.folder / "disk", "size=64k") as folder:
        run = bench.refuses(out="disk/out.png", words=["No space left", "out.png"], codes=[1])
        check(not list(folder.iterdir()), "left on the disk:", list(folder.iterdir()))
    return run.told


@scenario(4)
def a_disk_that_fails_at_fsync_or_rename_is_named(bench: Bench) -> str:
    drives = ((RENAMES, "ENOSPC", "No space left"), ("fsync", "EIO", "Input/output error"))
    for calls, error, word in drives:
        before = drivers.fail_at(calls, error, 1)
        bench.refuses(words=[word, "out.png"], codes=[1], before=before)
    return f"{len(drives)} faults named, nothing left"


@scenario(5)
def a_disk_without_inodes_is_named(bench: Bench) -> str:
    with drivers.disk(bench.folder / "disk", "nr_inodes=3") as folder:
        (folder / "one").touch()
        (folder / "two").touch()
        run = bench.refuses(out="disk/out.png", words=["No space left", "out.png"], codes=[1])
    return run.told


@scenario(8)
def an_output_folder_that_cannot_be_written_is_refused_at_once(bench: Bench) -> str:
    (bench.folder / "closed").mkdir(mode=0o555)
    (bench.folder / "file").write_text("no folder")
    nobody = drivers.as_nobody()
    runs = [
        bench.refuses(out="closed/out.png", words=["closed", "permission"], codes=[1], before=nobody),
        bench.refuses(out="missing/out.png", words=["missing", "does not exist"], codes=[1]),
        bench.refuses(out="file/out.png", words=["file/out.png"], codes=[1]),
    ]
    slowest = max(run.cpu for run in runs)
    check(slowest < 2, f"refused only after {slowest:.1f} s")
    return f"slowest refusal {slowest:.1f} s"


@scenario(9)
def a_read_only_disk_and_an_immutable_target_are_refused(bench: Bench) -> str:
    folder = bench.folder / "disk"
    folder.mkdir()
    with drivers.read_only(folder):
        first = bench.refuses(out="disk/out.png", words=["disk/out.png"], codes=[1])
    target = samples.write(bench.folder / "out.png", samples.textured(SIZE, 9))
    with drivers.immutable(target):
        second = bench.refuses("-f", words=["out.png", "not permitted"], codes=[1])
    slowest = max(first.cpu, second.cpu)
    check(slowest < 2, f"refused only after {slowest:.1f} s")
    return f"slowest refusal {slowest:.1f} s"


@scenario(10)
def an_existing_output_is_not_touched_unasked(bench: Bench) -> str:
    bench.good()
    run = bench.refuses(words=["out.png", "exists"])
    check(run.cpu < 2, f"refused only after {run.cpu:.1f} s")
    return run.told


@scenario(11)
def an_input_is_never_the_output_under_any_name(bench: Bench) -> str:
    (bench.folder / "link.jpg").symlink_to("a.jpg")
    os.link(bench.folder / "b.jpg", bench.folder / "hard.jpg")
    names = ["a.jpg", "./b.jpg", "link.jpg", "hard.jpg", f"../{bench.folder.name}/a.jpg"]
    if (bench.folder / "A.JPG").exists():  # where case does not count
        names.append("A.JPG")
    for name in names:
        bench.refuses("-f", out=name, words=["inputs"], codes=[2])
    return f"{len(names)} names refused"


@scenario(12)
def a_link_as_output_is_followed_and_stays(bench: Bench) -> str:
    (bench.folder / "elsewhere").mkdir()
    link, real = bench.folder / "out.png", bench.folder / "elsewhere" / "x.png"
    link.symlink_to(real)
    bench.good()
    check(link.is_symlink() and complete(real) == SIZE, "the file that the link names was not written")
    bench.refuses(words=["exists"])
    return "the file it names is written, never over an existing one without -f"


@scenario(13)
def two_runs_with_one_output_end_with_one_whole_picture(bench: Bench) -> str:
    target, codes = bench.folder / "out.png", []
    for _ in range(20):
        line = ("fuse", "a.jpg", "b.jpg", "-q", "--scale", "3", "-o", "out.png")
        pair = [bench.start(line) for _ in range(2)]
        told = [process.communicate(timeout=120)[1] for process in pair]
        ends = sorted(process.returncode for process in pair)
        check(ends in ([0, 0], [0, 1]), "exit codes", ends, told)
        check(complete(target) == SIZE, "no whole picture")
        check(not leftovers(bench.folder), leftovers(bench.folder))
        codes.append(ends)
        target.unlink()
    return f"20 rounds, {codes.count([0, 1])} times the second was refused"


@scenario(14)
def two_batches_with_one_output_folder_share_the_work(bench: Bench) -> str:
    samples.write_folders(bench.folder / "in", 4)
    pair = [bench.start(("batch", "in", "-o", "out", "-q", "-s", "2")) for _ in range(2)]
    told = [process.communicate(timeout=240)[1] for process in pair]
    done = sorted((bench.folder / "out").glob("*.jpg"))
    check(len(done) == 4, "outputs:", done, told)
    for path in done:
        check(complete(path) == (160, 128), path)
    codes = [process.returncode for process in pair]
    for code, text in zip(codes, told, strict=True):
        check("Traceback" not in text, text[-300:])
        check(code == 0 or "exist" in text or "appeared" in text, "failed without a reason:", text[-300:])
    check(not leftovers(bench.folder), leftovers(bench.folder))
    return f"exit codes {codes}, 4 whole pictures"


@scenario(15)
def permissions_follow_the_umask(bench: Bench) -> str:
    for mask in ("077", "022", "002"):
        before = ["sh", "-c", f'umask {mask}; exec "$@"', "sh"]
        bench.good(out=f"{mask}.png", before=before)
        mode = (bench.folder / f"{mask}.png").stat().st_mode & 0o777
        check(mode == 0o666 & ~int(mask, 8), f"umask {mask} gives {mode:o}")
    return "077, 022 and 002"


@scenario(16)
def unknown_and_lossy_extensions_are_said_before_work(bench: Bench) -> str:
    run = bench.refuses(out="out.xyz", words=["out.xyz", ".png"], codes=[2])
    check(run.cpu < 2, f"refused only after {run.cpu:.1f} s")
    for name, pixels in zip("ab", samples.bracket(SMALL), strict=True):
        samples.write_deep(bench.folder / f"{name}.png", pixels.astype(np.uint16) * 257)
    deep = bench.run("fuse", "a.png", "b.png", "-s", "1", "-o", "flat.jpg")
    check(deep.code == 0 and "8 bits" in deep.err, "no warning that 8 bits remain", deep.told)
    return "exit 2; 16 bits into a JPEG warned of"


@scenario(17)
def closed_and_full_standard_output_does_not_cost_the_picture(bench: Bench) -> str:
    shell = 'set -o pipefail; "$@" -s 1 -o {name}.png'
    cases: dict[str, tuple[str, tuple[int, ...]]] = {
        "closed": ("| head -c 0", (0,)),
        "full": (">/dev/full", (1,)),
        "pipe": ("2>&1 | cat", (0,)),
    }
    cases |= {"shut": (">&-", (0, 1)), "mute": ("2>&-", (0,))}
    told = []
    for name, (end, codes) in cases.items():
        script = f"{shell.format(name=name)} {end}"
        run = bench.run("fuse", "a.jpg", "b.jpg", before=["bash", "-c", script, "bash"])
        check(run.code in codes, name, run.told)
        check("Traceback" not in run.err and "Exception" not in run.err, name, run.told)
        check("\x1b" not in run.out + run.err, "control codes in", name)
        check(complete(bench.folder / f"{name}.png") == SMALL, name)
        told.append(f"{name} {run.code}")
    return ", ".join(told)


@scenario(18)
def the_file_is_synced_before_its_name_and_its_folder_after(bench: Bench) -> str:
    log = bench.folder / "log"
    calls = f"trace=openat,fsync,fdatasync,{RENAMES},link,linkat"
    bench.good(before=drivers.strace("-y", "-o", str(log), "-e", calls))
    text = log.read_text()
    place = re.escape(str(bench.folder))
    steps = [
        r'openat\([^\n]*"[^"]*\.mffsr-[^"]*\.tmp", [^\n]*O_CREAT',
        rf"fsync\(\d+<{place}/\.mffsr-[^>]*\.tmp>\) += 0",
        r"rename[^\n]*\.mffsr-[^\n]*out\.png",
        rf"fsync\(\d+<{place}>\) += 0",
    ]
    found = [match.start() if (match := re.search(step, text)) else -1 for step in steps]
    check(-1 not in found, "missing step", found, text[-500:])
    check(found == sorted(found), "wrong order", found)
    shutil.move(log, log.with_suffix(".txt"))
    return "create beside the target, fsync, rename, fsync of the folder"
