"""The program: finds the command, runs it, and answers bad input with one line and exit code 2."""

import importlib
import sys
from collections.abc import Sequence

from selfreward_jax import __version__
from selfreward_jax.cli import parser
from selfreward_jax.config import InputError
from selfreward_jax.console import streams

EXIT_NO_READER = 141  # as a shell reports a program that a closed pipe has ended


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: the command and its options; by default those of this process.

    Returns:
      The exit code: 0 done; 1 an error of the program, after its traceback; 2 invalid input, or results that cannot be
      written, after a one-line message; 130 interrupted; 141 nobody reads the results; others as the command says.
    """
    with streams.libraries():
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        except (InputError, streams.OutputError) as error:
            line, code = str(error), 2
        except KeyboardInterrupt:  # outside of the loop, which answers it itself
            line, code = "interrupted", 130
        except BrokenPipeError:  # the reader of our output has seen enough
            return EXIT_NO_READER
        except OSError as error:
            line, code = str(error), 2
            if error.filename:
                line = f"{error.filename} cannot be used: {error.strerror}"
        except Exception:
            streams.failure()
            return 1
        streams.message(f"selfreward_jax: {line}")
        return code


def _run(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        text = parser.overview()
    elif name == "--version":
        text = __version__
    elif name in parser.COMMANDS and {"-h", "--help", "--helpfull"} & set(argv):
        text = parser.command_help(name).rstrip("\n")
    else:
        options = parser.parse(argv)
        return importlib.import_module(f"selfreward_jax.cli.{options.command}").main(options)
    streams.result(*text.split("\n"))
    return 0
