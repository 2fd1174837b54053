"""Photos that vanish, change or lie. Scenarios 19–32."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import damage
import drivers
import foreign
import numpy as np
import samples
from bench import SMALL, Bench, check, complete, leftovers
from PIL import Image
from registry import scenario

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the samples of the other tests


@scenario(19)
def what_is_no_photo_file_is_refused_at_once(bench: Bench) -> str:
    os.mkfifo(bench.folder / "pipe.jpg")
    (bench.folder / "empty.jpg").touch()
    (bench.folder / "folder.jpg").mkdir()
    slowest = 0.0
    for bad in ("missing.jpg", "folder.jpg", "pipe.jpg", "/dev/zero", "/dev/full", "empty.jpg"):
        for photos in (("a.jpg", bad), (bad, "b.jpg")):
            run = bench.refuses(photos=photos, words=[bad], codes=[1])
            slowest = max(slowest, run.cpu)
    check(slowest < 2, f"refused only after {slowest:.1f} s")
    return f"6 kinds, each first and second; slowest {slowest:.1f} s"


@scenario(20)
def a_photo_that_vanishes_during_a_batch_costs_its_bracket_only(bench: Bench) -> str:
    source = samples.write_folders(bench.folder / "in", 10)
    out = bench.folder / "out"
    process = bench.start(("batch", "in", "-o", "out", "-s", "2"))
    while len(list(out.glob("*.jpg"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    (source / "b07" / "b.jpg").unlink()
    _, errors = process.communicate(timeout=240)
    done = {path.name for path in out.glob("*.jpg")}
    check(process.returncode == 1, "code", process.returncode, errors[-300:])
    check(done == {f"b{n:02d}_x2.jpg" for n in range(1, 11) if n != 7}, sorted(done))
    check("9 done" in errors and "1 failed" in errors and "b07" in errors, errors[-300:])
    return errors.strip().splitlines()[-1]


@scenario(21)
def a_photo_that_is_rewritten_while_it_is_read_gives_a_picture_or_a_refusal(bench: Bench) -> str:
    versions = [(bench.folder / "b.jpg").read_bytes()]
    versions.append(samples.write(bench.folder / "c.jpg", samples.bracket(SMALL, 3)[1]).read_bytes())
    ended = threading.Event()

    def rewrite() -> None:
        turn = 0
        while not ended.is_set():
            with open(bench.folder / "b.jpg", "wb") as file:
                whole = versions[turn % 2]
                file.write(whole[: len(whole) // 2])
                file.flush()
                file.write(whole[len(whole) // 2 :])
            turn += 1
            time.sleep(0.001)

    writer = threading.Thread(target=rewrite)
    writer.start()
    codes = []
    try:
        for _ in range(10):
            run = bench.fuse("--on-exists", "overwrite")
            codes.append(run.code)
            check(run.code in (0, 1) and "Traceback" not in run.err, run.told)
            if run.code == 0:
                complete(bench.folder / "out.png")
    finally:
        ended.set()
        writer.join()
    check(not leftovers(bench.folder), leftovers(bench.folder))
    return f"10 runs: {codes.count(0)} pictures, {codes.count(1)} refusals"


@scenario(22)
def a_photo_without_permission_is_named(bench: Bench) -> str:
    (bench.folder / "a.jpg").chmod(0)
    bench.folder.chmod(0o777)
    run = bench.refuses(words=["a.jpg", "ermission denied"], codes=[1], before=drivers.as_nobody())
    return run.told


@scenario(23)
def a_photo_whose_disk_fails_is_named(bench: Bench) -> str:
    photo, refused = bench.folder / "b.jpg", 0
    for number in range(1, 6):
        before = drivers.fail_at("read", "EIO", number, photo)
        run = bench.fuse(out=f"{number}.png", before=before)
        if run.code == 0:  # there are fewer reads
            break
        check(run.code == 1 and "Traceback" not in run.err, run.told)
        check("b.jpg" in run.err and "nput/output error" in run.err, run.told)
        refused += 1
    check(refused >= 1, "no read failed")
    return f"each of the {refused} reads of the file"


@scenario(24)
def every_broken_file_of_other_projects_is_refused(bench: Bench) -> str:
    return foreign.refuse_all(bench, bench.need_corpus())


@scenario(25)
def every_good_file_of_other_projects_is_fused(bench: Bench) -> str:
    return foreign.accept_all(bench, bench.need_corpus())


def _victims(bench: Bench, *, boxed: bool) -> Iterator[Path]:
    """Write a photo in every format that can be made here; RAWs of other cameras where there are any."""
    picture = samples.textured((120, 90), 4)
    for name in ("x.jpg", "x.png", "x.tif", "x.webp"):
        yield samples.write(bench.folder / name, picture)
    yield samples.write_deep(bench.folder / "deep.png", picture.astype(np.uint16) * 257)
    yield samples.write_deep(bench.folder / "deep.tif", picture.astype(np.uint16) * 257)
    try:
        from pillow_heif import from_pillow

        from_pillow(Image.fromarray(picture)).save(bench.folder / "x.heic", quality=90)
        yield bench.folder / "x.heic"
    except ImportError:
        pass
    if boxed and ".avif" in Image.registered_extensions():
        yield samples.write(bench.folder / "x.avif", picture)
    from photo_samples import write_dng

    sensor = np.random.default_rng(7).integers(1000, 60000, (96, 64)).astype(np.uint16)
    write_dng(bench.folder / "x.dng", sensor)
    yield bench.folder / "x.dng"
    if bench.corpus is not None:
        yield from sorted((bench.corpus / "digicam").glob("*.CRW"))[:1]


def _damage(bench: Bench, kind: str, refused: set[str]) -> str:
    """Damage one photo of every format; all versions of the suffixes in `refused` must be refused."""
    told, faults = [], []
    for path in _victims(bench, boxed=kind == "cuts"):
        tally = damage.try_all(path, kind)
        suffix = path.suffix.lower()
        told.append(f"{path.stem[:4]}{suffix} {tally.tried - len(tally.accepted)}/{tally.tried}")
        faults += [f"{path.name} {text}" for text in tally.broken]
        if suffix in refused:
            faults += [f"{path.name} {how}: accepted" for how in tally.accepted]
    check(not faults, f"{len(faults)} faults:", "; ".join(faults[:10]), "| refused:", ", ".join(told))
    if not any(".heic" in text for text in told):
        told.append("HEIC skipped: its plug-in is not installed")
    if not any(".crw" in text for text in told):
        told.append("CRW skipped: no folder of test photos")
    return "refused: " + ", ".join(told)


@scenario(26)
def flipped_bits_crash_nothing_and_none_passes_in_a_png(bench: Bench) -> str:
    return _damage(bench, "flips", {".png"})


@scenario(27)
def files_cut_anywhere_are_all_refused(bench: Bench) -> str:
    cut = {".jpg", ".png", ".tif", ".webp", ".heic", ".avif", ".dng", ".crw"}
    return _damage(bench, "cuts", cut)


@scenario(28)
def raws_whose_pixels_are_missing_are_refused(bench: Bench) -> str:
    raws = sorted((bench.need_corpus() / "digicam").iterdir())
    faults, count = [], 0
    for path in (path for path in raws if path.suffix in (".CRW", ".KDC")):
        whole = path.read_bytes()
        half, tail = len(whole) // 2, len(whole) * 9 // 10
        versions = {
            "second half zero": whole[:half] + bytes(len(whole) - half),
            "end missing": whole[:tail],
            "half missing": whole[:half],
            "middle zero": whole[: half // 2] + bytes(half) + whole[half // 2 + half :],
        }
        for how, content in versions.items():
            for name in ("one", "two"):
                (bench.folder / f"{name}{path.suffix}").write_bytes(content)
            photos = [f"one{path.suffix}", f"two{path.suffix}"]
            run = bench.run("fuse", *photos, "-q", "-n", "-s", 1)
            count += 1
            if run.code != 1 or "Traceback" in run.err or len(run.err.splitlines()) > 5:
                faults.append(f"{path.name} {how} {run.told}")
    check(not faults, f"{len(faults)} of {count}:", "; ".join(faults))
    return f"{count} damaged versions of the {len(raws)} RAWs refused"


@scenario(29)
def the_content_counts_not_the_suffix_and_no_program_is_started(bench: Bench) -> str:
    shutil.copy(bench.folder / "a.jpg", bench.folder / "a.nef")
    with Image.open(bench.folder / "b.jpg") as image:
        image.save(bench.folder / "png.jpg", "PNG")
    bench.good(photos=("a.nef", "png.jpg"), scale=1)
    (bench.folder / "eps.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 64\n%%EndComments\nshowpage\n%%EOF\n"
    )
    log = bench.folder.parent / "execve.log"
    before = drivers.strace("-o", str(log), "-e", "trace=execve")
    bench.refuses(photos=("a.jpg", "eps.jpg"), out="x.png", words=["eps.jpg", "PostScript"], before=before)
    started = [line for line in log.read_text().splitlines() if "execve(" in line and "= 0" in line]
    check(len(started) == 1, "programs started:", started)
    return "JPEG as .nef and PNG as .jpg fused, EPS as .jpg refused"


ODD_NAMES = (
    "two words.jpg", "-dash.jpg", "--", "two\nlines.jpg", "a\ttab.jpg", "é\u0301\u202eabc.jpg",
    "[/red].jpg", "[bold]x[/].jpg", "\x1b[31mred.jpg", "%s%n.jpg", "a.JPG", "dot.jpg.", "n" * 251 + ".jpg",
    "\udcff\udcfe.jpg",
)  # fmt: skip


@scenario(30)
def odd_names_are_read_written_and_printed(bench: Bench) -> str:
    for name in ODD_NAMES:
        odd = bench.sub(f"dir{ODD_NAMES.index(name)}")
        (odd.folder / name).parent.mkdir(exist_ok=True)  # one of them names a folder
        (odd.folder / "b.jpg").rename(odd.folder / name)
        target = name.removesuffix(".jpg").replace("/", "-")[:245] + ".png"
        run = odd.run("fuse", "-s", "1", f"--output={target}", "--", "a.jpg", name)
        check(run.code == 0, repr(name), run.told)
        check("\x1b" not in run.err, repr(name), "reaches the terminal")
        check(complete(odd.folder / target) == SMALL, repr(name))
        check(len(list(odd.folder.iterdir())) == 3, list(odd.folder.iterdir()))
    bench.refuses(out="n" * 252 + ".png", words=["too long"], codes=[1])
    bench.refuses(photos=("a.jpg", "[/red] is missing.jpg"), words=["[/red]"], codes=[1])
    return f"{len(ODD_NAMES)} names; 256 bytes refused"


@scenario(31)
def links_in_circles_end_and_every_bracket_is_done_once(bench: Bench) -> str:
    source = samples.write_folders(bench.folder / "in", 2)
    (source / "loop").symlink_to(".")
    (source / "b1" / "up").symlink_to("..")
    (source / "again").symlink_to("b2")
    deep = source / Path(*["d"] * 60)
    samples.write_bracket(deep, (80, 64), 5)
    run = bench.run("batch", "in", "-o", "out", "-s", "1", "--template", "{bracket}{ext}")
    check(run.code == 0, run.told)
    done = list((bench.folder / "out").rglob("*.jpg"))
    check(len(done) == 3, done)
    return "3 brackets, one of them 60 folders deep, each once"


@scenario(32)
def no_batch_writes_outside_its_output_folder(bench: Bench) -> str:
    samples.write_folders(bench.folder / "in", 1)
    photos = 'photos = ["in/b1/a.jpg", "in/b1/b.jpg"]'
    for name in ("../evil", "/tmp/evil", "a/../../evil", ".."):
        (bench.folder / "plan.toml").write_text(f'[[bracket]]\nname = "{name}"\n{photos}\n')
        line = ("batch", "--plan", "plan.toml", "-o", "out", "-q")
        bench.refused(lambda line=line: bench.run(*line), codes=[2])  # type: ignore[misc]
    for template in ("../{bracket}{ext}", "/tmp/{bracket}{ext}"):
        named = ("batch", "in", "-o", "out", "-q", "--template", template)
        bench.refused(lambda line=named: bench.run(*line), codes=[2])  # type: ignore[misc]
    log = bench.folder.parent / "open.log"
    before = drivers.strace("-o", str(log), "-e", "trace=openat,creat,mkdir,rename,renameat2,link,symlink")
    run = bench.run("batch", "in/../in", "-o", "out", "-q", "-s", "1", before=before)
    check(run.code == 0, run.told)
    made = re.findall(
        r'(?:openat\([^"]*|mkdir\()"([^"]+)"[^\n]*(?:O_CREAT[^\n]*\) = \d+|\) = 0)', log.read_text()
    )
    here = os.path.realpath(bench.folder)
    outside = []
    for name in made:
        real = os.path.realpath(bench.folder / name)
        passing = os.path.dirname(real) == tempfile.gettempdir() and not os.path.lexists(real)
        if not real.startswith((f"{here}/out", "/dev/", "/proc/")) and not passing:
            outside.append(name)
    check(not outside, "made outside:", sorted(set(outside))[:5])
    check(made, "nothing was traced")
    return f"6 plans and templates refused; {len(made)} files and folders made, all inside"
