"""Brackets done by worker processes: the same files and words as here, whatever becomes of the workers."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import pytest
from test_batch import ENV, events, leftovers, mffsr, outputs, write_brackets

from mffsr import batch_workers
from mffsr.batch import Outcome
from mffsr.batch_cluster import TRIES, Told, new_run, run_cluster
from mffsr.batch_workers import Teller, cluster
from mffsr.cli import batch_remote
from mffsr.errors import BracketError, ClusterError
from mffsr.photo.brackets import Bracket

distributed = pytest.importorskip("distributed")
__all__ = ["mffsr"]  # a fixture


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Two worker processes of a cluster, which starts another one for each that dies."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        local_directory=str(tmp_path_factory.mktemp("scratch")),
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def brackets(tmp_path_factory) -> Path:
    return write_brackets(tmp_path_factory.mktemp("brackets") / "in", 5, (128, 160))


def kill_one_at_work(cluster, done: threading.Event) -> None:
    """Kill a worker process as soon as it has been at a bracket for a moment."""
    since: dict[str, float] = {}
    while not done.wait(0.002):
        for nanny in cluster.workers.values():
            state = cluster.scheduler.workers.get(nanny.worker_address)
            keys = [str(task.key) for task in state.processing] if state else []
            for key in keys:
                first = since.setdefault(key, time.monotonic())
                if "-bracket-" in key and time.monotonic() - first > 0.05:
                    os.kill(nanny.pid, signal.SIGKILL)
                    return


@pytest.fixture
def threads_of_workers():
    """OpenCV's threads as the workers have them: registration's last bits depend on their number."""
    own = cv2.getNumThreads()
    cv2.setNumThreads(-1)
    yield
    cv2.setNumThreads(own)


@pytest.mark.usefixtures("threads_of_workers")
def test_one_of_two_workers_is_killed(mffsr, brackets, tmp_path, workers):
    options = ["-s", 3, "--focus-map", "{bracket}_map.png", "--json"]
    assert mffsr("batch", brackets, "-o", tmp_path / "here", *options).exit_code == 0
    done = threading.Event()
    killer = threading.Thread(target=kill_one_at_work, args=(workers, done))
    killer.start()
    address = workers.scheduler_address
    result = mffsr("batch", brackets, "-o", tmp_path / "there", *options, "--cluster", address)
    done.set()
    killer.join()
    assert result.exit_code == 0, result.stderr
    assert f"was lost; it is tried again, 2 of {TRIES}" in result.stderr
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert len(names) == 5 * 3 + 1
    for name in names[1:]:  # the first are the records
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name
    assert sorted(event["index"] for event in events(result) if event["event"] == "done") == [1, 2, 3, 4, 5]
    again = mffsr("batch", brackets, "-o", tmp_path / "there", *options, "--resume")
    assert [event["event"] for event in events(again)][1::2] == ["skipped"] * 5


def told(result) -> list:
    """What is told of each bracket, but for its time."""
    seconds = {"seconds": None, "failures": None}
    return sorted(json.dumps(event | seconds) for event in events(result) if event["event"] != "start")


def test_errors_and_warnings_come_back_as_they_are_here(mffsr, brackets, tmp_path, workers, monkeypatch):
    folder = tmp_path / "in"
    shutil.copytree(brackets, folder)
    (folder / "b2" / "p2.jpg").write_bytes((folder / "b2" / "p2.jpg").read_bytes()[:900])
    (folder / "b3" / "p2.jpg").write_bytes(b"no photo")
    shutil.copy(brackets / "b1" / "p1.jpg", folder / "b4" / "p2.jpg")  # of another scene
    monkeypatch.chdir(tmp_path)
    one = mffsr("batch", "in", "-o", "out", "-s", 1, "--json")
    first = outputs(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    other = mffsr("batch", "in", "-o", "out", "-s", 1, "--json", "--cluster", workers.scheduler_address)
    assert one.exit_code == other.exit_code == 1
    assert [event["event"] for event in events(one)][1::2] == ["done", "failed", "failed", "failed", "done"]
    absolute = f"{tmp_path}{os.sep}"  # the workers know photos by their whole names
    assert [line.replace(absolute, "") for line in told(other)] == told(one)
    assert outputs(tmp_path / "out") == first


def refused(mffsr, folder: Path, out: Path, address: str) -> str:
    result = mffsr("batch", folder, "-o", out, "--cluster", address)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) < 8
    assert not outputs(out)
    return result.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "9.9"}, "expected 9.9 as here"),
        ({"weights": ("0" * 64, "1" * 64)}, "expected 0000000000000000 1111111111111111"),
        ({"photo": Path("/nowhere/a.jpg")}, "does not see /nowhere/a.jpg"),
    ],
)
def test_workers_that_are_not_alike_are_refused(
    mffsr, brackets, tmp_path, workers, monkeypatch, change, words
):
    plain = batch_remote._task
    monkeypatch.setattr(batch_remote, "_task", lambda *given: replace(plain(*given), **change))
    errors = refused(mffsr, brackets, tmp_path / "out", workers.scheduler_address)
    assert "worker tcp://127.0.0.1:" in errors
    assert words in errors


def test_nobody_answers(mffsr, brackets, tmp_path, monkeypatch):
    errors = refused(mffsr, brackets, tmp_path / "out", "tcp://127.0.0.1:9")
    assert "tcp://127.0.0.1:9: no Dask scheduler answers there" in errors
    assert "no Dask scheduler" in refused(mffsr, brackets, tmp_path / "out", "what is this")
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install 'mffsr[cluster]'" in refused(mffsr, brackets, tmp_path / "out", "tcp://127.0.0.1:9")
    assert mffsr("batch", brackets, "--cluster", "tcp://127.0.0.1:9", "--workers", 2).exit_code == 2
    empty = mffsr("batch", brackets, "--cluster", "")  # as of a variable that is not set
    assert empty.exit_code == 2
    assert "--cluster: the address is empty" in empty.stderr


@pytest.mark.parametrize("address", ["nonsense", "odd://127.0.0.1:9", "a worker"])
def test_a_client_that_cannot_begin_is_closed(workers, address):
    """Else its destructor waits ten seconds for what it never opened, and prints a traceback."""
    if address == "a worker":
        address = next(iter(workers.scheduler_info["workers"]))
    with pytest.raises(ClusterError, match="no Dask scheduler answers there"), cluster(address):
        pass
    clients = [one for one in gc.get_objects() if distributed.Client in type(one).__mro__]
    assert "connecting" not in {client.status for client in clients}


def test_what_takes_the_connection_and_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(batch_workers, "ANSWER", 0.5)
    said = []

    def reach(port: int) -> None:
        try:
            with cluster(f"tcp://127.0.0.1:{port}"):
                pass
        except ClusterError as fault:
            said.append(str(fault))

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asking = threading.Thread(target=reach, args=silent.getsockname()[1:], daemon=True)
        asking.start()
        asking.join(20)
        assert "no Dask scheduler answers there (timed out)" in "".join(said)


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(64)], ids=["web", "zeros"])
def test_another_service_that_answers_is_no_scheduler(reply):
    def serve() -> None:
        with server.accept()[0] as asked, suppress(OSError):
            asked.sendall(reply)
            while asked.recv(4096):  # until it is given up
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        told = "no Dask scheduler answers there .something else does"
        with pytest.raises(ClusterError, match=told), cluster(f"tcp://127.0.0.1:{server.getsockname()[1]}"):
            pass


@dataclass
class Deadly:
    """A task that kills the worker at the bracket named so."""

    run: str

    def prepare(self):
        return {"kind": "deadly"}

    def do(self, bracket, *, again):
        Teller(self.run).tell("progress", "enlarge", ord(bracket.name[0]), 9)
        if bracket.name == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome(event="skipped" if again else "done", bracket=bracket, index=1, seconds=0)


def test_a_bracket_that_kills_its_workers_is_named_at_last(workers):
    names = ["a", "deadly", "b", "refused", "c"]
    ended, progress, warnings = {}, [], []

    def claim(bracket):
        if bracket.name == "refused":
            raise BracketError("no")

    run_of_tests = Told(
        started=lambda bracket, index: None,
        ended=lambda outcome: ended.setdefault(outcome.bracket.name, outcome),
        progress=lambda *values: progress.append(values),
        message=lambda text: None,
        warning=warnings.append,
    )
    with distributed.Client(workers, set_as_default=False) as client:
        brackets = [Bracket(name=name, photos=[]) for name in names]
        run_cluster(client, brackets, Deadly(new_run()), claim=claim, told=run_of_tests)
    assert {name: outcome.event for name, outcome in ended.items()} == {
        "a": "done",
        "deadly": "failed",
        "b": "done",
        "refused": "failed",
        "c": "done",
    }
    assert [ended[name].index for name in names] == [1, 2, 3, 4, 5]
    assert "is there enough memory for it?" in str(ended["deadly"].error)
    assert len([text for text in warnings if text.startswith("deadly: ")]) == TRIES - 1
    assert {values[1:] for values in progress} >= {("enlarge", ord(name), 9) for name in "abc"}


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_a_worker_leaves_the_end_of_the_terminal_to_the_client():
    program = "import signal; from mffsr.batch_workers import ignore_interrupts as ignore; ignore()"
    program += "; signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGHUP); print('at work')"
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
    assert told.stdout == "at work\n", told.stderr


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no such thing here")
def test_a_worker_never_hears_of_ctrl_c(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with cluster(None, 1) as client:
        (held,) = client.run(signal.pthread_sigmask, signal.SIG_BLOCK, ()).values()
    assert signal.SIGINT in held  # from its very beginning: being loaded, it would print a traceback
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_ctrl_c_leaves_whole_files_and_nothing_else(mffsr, brackets, tmp_path, tiny_weights):
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "mffsr", "batch", brackets, "-o", out, "-s", "4", "--workers", "2"]
    process = subprocess.Popen(
        [*map(str, command), "--weights", str(tiny_weights)],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while not outputs(out) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "interrupted" in errors
    assert 1 <= len(outputs(out)) < 5, errors
    assert not leftovers(out)
    result = mffsr("batch", brackets, "-o", out, "-s", 4, "--resume", "--workers", 2)
    assert result.exit_code == 0, result.stderr
    assert "skipped" in result.stderr
    assert mffsr("batch", brackets, "-o", whole, "-s", 4).exit_code == 0
    assert outputs(out) == outputs(whole)
