"""The verbs of `tracekit` and what all of them share: one line and exit code 2 for unusable input."""

from __future__ import annotations

import signal
import sys

import typer

from tracekit.cli import (
    bench,
    conform,
    convert,
    diff,
    evaluate,
    info,
    prune_store,
    record,
    repair,
    replay,
    report,
    sweep,
    train,
    verify,
)
from tracekit.errors import TracekitError

__all__ = ["app", "main"]

app = typer.Typer(
    name="tracekit",
    help="Record a multi-visual-modal VLA policy once; replay any token-pruning configuration against the recording.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(record.app, name="record")
app.command("info")(info.info)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("replay")(replay.replay)
app.command("diff")(diff.diff)
app.command("sweep")(sweep.sweep)
app.add_typer(report.app, name="report")
app.add_typer(bench.app, name="bench")
app.command("verify")(verify.verify)
app.command("repair")(repair.repair)
app.command("prune-store")(prune_store.prune_store)
app.command("convert")(convert.convert)
app.command("conform")(conform.conform)


INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells have it; typer ends a command with it."""


def main() -> None:
    """Run the command line. Exit codes: 0 fine, 1 a difference or a failed gate, 2 unusable input (one line)."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = app(standalone_mode=False)
    except TracekitError as error:
        _refuse(str(error))
    except typer.TyperException as error:
        message = error.format_message()  # empty where the help has been shown in place of missing arguments
        _refuse(f"{message} Run `tracekit --help`." if message else "")
    except OSError as error:
        _refuse(f"{error.filename or 'a file'}: {error.strerror or error}; check the path, its rights and the disk")
    except KeyboardInterrupt:
        status = INTERRUPTED
    except typer.Abort as abort:  # what typer makes of an EOFError; its Ctrl-C is an exit code
        raise (abort.__cause__ or abort) from None
    if status == INTERRUPTED:
        sys.stderr.write("tracekit: interrupted; what was written is kept, finished episodes and the steps recorded\n")
    sys.exit(status if isinstance(status, int) else 0)


def _refuse(message: str) -> None:
    if message:
        sys.stderr.write(f"tracekit: {' '.join(message.split())}\n")
    sys.exit(2)
