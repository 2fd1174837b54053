"""`python -m mffsr` and the `mffsr` command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

__all__ = ["main"]

# How often PyTorch's threads look for work before they sleep; by default 300,000 times. Beside another busy
# program a `fuse` then took 24 s instead of 17: threads that wait keep off those that they wait for.
SPINS = "10000"


def main() -> None:
    """Run the command line; Ctrl-C while it is still being loaded ends it as cleanly as later."""
    _open_closed_streams()
    try:
        from mffsr.allocator import tune_malloc

        tune_malloc()
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
        from mffsr.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        _leave(130)
    except OSError as error:  # of --help or --version, which print by themselves
        if "--debug" in sys.argv:
            raise
        sys.stderr.write(f"error: {error.strerror or error}\n")
        _leave(1)
    except SystemExit as end:
        if end.code == 130:
            _leave(130)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # exceptions while Python ends would only be printed
        raise


def _leave(code: int) -> None:
    """End at once, everything being closed already.

    Python itself would end by the signal instead of with the code if a KeyboardInterrupt ever passed through
    code that a library runs in the interpreter, handled though it was.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _open_closed_streams() -> None:
    """Let standard streams that the caller closed lead nowhere.

    Else Python has None in their place, and the next file opened, such as the output, takes their number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


if __name__ == "__main__":
    main()
