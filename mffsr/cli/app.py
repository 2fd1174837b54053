"""The `mffsr` command: its sub-commands are in the files beside this one."""

from __future__ import annotations

import typer

from mffsr.cli import batch, doctor, evaluate, fuse, train
from mffsr.cli import options as opt

__all__ = ["app"]

EPILOG = "Exit codes: 0 all done · 1 something could not be done · 2 usage · 130 Ctrl-C · 143 terminated."

app = typer.Typer(
    name="mffsr",
    help="Fuse a focus bracket into one all-in-focus photograph and super-resolve it, in one network.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it takes [brackets] in help texts for markup and squeezes them into columns
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fuse", short_help="One bracket → one photo, sharp throughout and enlarged.", epilog=EPILOG)(
    fuse.fuse
)
app.command("batch", short_help="The same for a folder of brackets.", epilog=EPILOG)(batch.batch)
app.command("train", short_help="Train the networks on your own photographs.", epilog=EPILOG)(train.train)
app.command(
    "eval",
    cls=evaluate.EvalCommand,
    short_help="Measure fused photos; the paper's metrics and tables.",
    epilog=EPILOG,
)(evaluate.evaluate)
app.command("doctor", short_help="Check the installation and say how to fix what is missing.", epilog=EPILOG)(
    doctor.doctor
)


@app.callback()
def _common(version: opt.Version = False) -> None:
    """Fuse a focus bracket into one all-in-focus photograph and super-resolve it, in one network."""
