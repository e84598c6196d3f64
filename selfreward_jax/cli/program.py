"""The program: finds the command, runs it, and answers bad input with one line and exit code 2."""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from selfreward_jax import __version__
from selfreward_jax.cli import parser
from selfreward_jax.config import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: the command and its options; by default those of this process.

    Returns:
      The exit code: 0 done; 2 invalid input, after a one-line message; 130 interrupted; others as the command says.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(parser.overview())
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name in parser.COMMANDS and {"-h", "--help", "--helpfull"} & set(argv):
        print(parser.command_help(name), end="")
        return 0
    try:
        options = parser.parse(argv)
        return importlib.import_module(f"selfreward_jax.cli.{options.command}").main(options)
    except InputError as error:
        line, code = str(error), 2
    except KeyboardInterrupt:  # outside of the loop, which answers it itself
        line, code = "interrupted", 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        line, code = str(error), 2
        if error.filename:
            line = f"{error.filename} cannot be used: {error.strerror}"
    with contextlib.suppress(OSError):  # nobody reads it
        print(f"selfreward_jax: {line}", file=sys.stderr, flush=True)
    return code
