"""The `lightning-freeze` command: find the subcommand, run it, and turn errors into one message.

Nothing here imports torch, so `--help`, `--version` and a misspelled path respond at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import lightning_freeze
from lightning_freeze.errors import FreezeError
from lightning_freeze.preview.user_code import described, origin
from lightning_freeze.report.rendering import folded

# A new command is one module of lightning_freeze/commands/ (its __init__ says what is in it) and its name here.
COMMANDS = ("stages", "preview", "savings", "suggest", "merge", "convert", "cache")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 on success, and 2 on a user error, with the message on stderr and no traceback."""
    options = _parse(arguments)
    try:
        print(options.run(options), flush=True)
    except BrokenPipeError:  # `| head` has closed the pipe; prevent another error at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except FreezeError as error:
        return _fail(error, str(error), options.traceback)
    except Exception as error:
        if origin(error) is None:
            raise  # a bug in this package: print the traceback
        return _fail(error, described(error), options.traceback)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lightning-freeze", description="See what freezing would do.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"lightning-freeze {lightning_freeze.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name in COMMANDS:
        command = import_module(f"lightning_freeze.commands.{name}")
        one = commands.add_parser(name, help=command.HELP, description=command.DESCRIPTION, allow_abbrev=False)
        command.add_arguments(one)
        one.add_argument("--traceback", action="store_true", help="after an error, show where it came from")
        one.set_defaults(run=command.run, takes_overrides=getattr(command, "TAKES_OVERRIDES", False), parser=one)
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.takes_overrides:
        options.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.overrides = rest
    return options


def _fail(error: Exception, message: str, with_traceback: bool) -> int:
    if with_traceback:
        traceback.print_exception(error)
    elif origin(error) is not None:
        message += "\n  To see the whole traceback, add --traceback"
    print(folded(f"lightning-freeze: {message}", sys.stderr), file=sys.stderr)
    return 2
