"""The command line: from arguments to settings, with a one-line error where they cannot be read."""

import argparse
import difflib
import os
from typing import Any, NoReturn

from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags

from selfreward_jax import config
from selfreward_jax.telemetry import compile_cache

_CONFIG = config_flags.DEFINE_config_file("config", None, "Settings: FILE or FILE:PRESET.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/default", "Working directory of the run: a folder or gs://BUCKET/FOLDER."
)
_COMPILE_CACHE_HELP = "Folder of the persistent compilation cache; empty: no cache."
_COMPILE_CACHE = flags.DEFINE_string("compile_cache", compile_cache.default_directory(), _COMPILE_CACHE_HELP)
_ALLOW_HELP = "Resume a working directory with changed settings, where no existing artifact depends on them."
_ALLOW_CONFIG_CHANGES = flags.DEFINE_bool("allow_config_changes", False, _ALLOW_HELP)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and stop.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes, found through the environment.")
_PROCESS_FLAGS = {
    "coordinator_address": flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process."),
    "num_processes": flags.DEFINE_integer("num_processes", None, "Number of processes."),
    "process_id": flags.DEFINE_integer("process_id", None, "Index of this process, from 0."),
}


def parse(argv: list[str]) -> tuple[ConfigDict, str]:
    """The settings and the working directory that the command line gives.

    Raises:
      ConfigError: the command line, the configuration file or a field in it is not usable.
    """
    try:
        positional = flags.FLAGS(argv)
        cfg = _CONFIG.value
        _ = cfg and cfg.to_dict()  # a file that failed to load raises only when it is read
    except Exception as error:  # a configuration file is a program: it can fail in any way
        raise config.ConfigError(_explain(argv, error)) from None
    if len(positional) > 1:
        raise config.ConfigError(f"{positional[1]!r} is not an option; options begin with --")
    if cfg is None:
        raise config.ConfigError("--config is missing: for example --config=configs/iter2.py")
    return cfg, _WORKDIR.value


def compile_cache_dir() -> str:
    """The folder of the compilation cache; "" for none. Call `parse` first."""
    return _COMPILE_CACHE.value


def allow_config_changes() -> bool:
    """Whether changed settings are accepted where no artifact depends on them. Call `parse` first."""
    return _ALLOW_CONFIG_CHANGES.value


def dry_run() -> bool:
    """Whether only the plan is wanted. Call `parse` first."""
    return _DRY_RUN.value


def distributed_options() -> dict[str, Any] | None:
    """How to find the other processes, for `parallel.processes.initialize`. Call `parse` first.

    Returns:
      None if this is the only process; {} if the environment knows the others; else the three options by name.

    Raises:
      ConfigError: the options are incomplete or out of range.
    """
    options = {name: flag.value for name, flag in _PROCESS_FLAGS.items() if flag.value is not None}
    if not options:
        return {} if _DISTRIBUTED.value else None
    missing = [f"--{name}" for name in _PROCESS_FLAGS if name not in options]
    if missing:
        present = ", ".join(f"--{n}={v}" for n, v in options.items())
        raise config.ConfigError(f"{present} without {' and '.join(missing)}: give all three, or --distributed alone")
    host, _, port = options["coordinator_address"].rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise config.ConfigError(
            f"coordinator_address is {options['coordinator_address']!r}; it must be HOST:PORT of the first process"
        )
    if not 0 <= options["process_id"] < options["num_processes"]:
        raise config.ConfigError(
            f"process_id is {options['process_id']}, of num_processes {options['num_processes']}; it must be from 0 to "
            f"{options['num_processes'] - 1}"
        )
    return options


def _explain(argv: list[str], error: Exception) -> str:
    """Why the command line could not be read, on one line. The parser raises several kinds of errors, and some contain
    tracebacks. So look first for the common mistakes."""
    words = " ".join(argv[1:]).replace("--config ", "--config=").split(" ")
    options = dict(w.lstrip("-").partition("=")[::2] for w in words if w.startswith("--"))
    path, _, preset = options.get("config", "").partition(":")
    if path and not os.path.isfile(path):
        return f"config is {path!r}, and there is no such file; the configurations are in configs/"
    try:
        defaults = flatten_config(config.get_config(preset))
    except config.ConfigError as unknown_preset:
        return str(unknown_preset)
    for option, value in options.items():
        field = option.removeprefix("no").removeprefix("config.")
        if not option.removeprefix("no").startswith("config."):
            continue
        if field not in defaults:
            nearest = difflib.get_close_matches(field, defaults, n=1, cutoff=0.0)
            return f"{field} (given as {value!r}) is not a setting; the nearest one is {nearest[0]}"
        if f"--{option}" in str(error):
            type_name = type(defaults[field]).__name__
            return f"{field} is {value!r}, which is not of type {type_name}; its default is {defaults[field]!r}"
    if not isinstance(error, flags.Error):
        return f"config {path!r} does not load: {type(error).__name__}: {' '.join(str(error).split())}"
    if "Traceback" in str(error):
        return f"config {path!r} does not load: {str(error).strip().splitlines()[-1]}"
    return " ".join(str(error).split())


def flatten_config(cfg: ConfigDict) -> dict[str, Any]:
    """Every field by its dotted name, with its value."""
    return flatten_dict(cfg.to_dict(), sep=".")


def make_parser(command: str, description: str | None, compiles: bool = False) -> argparse.ArgumentParser:
    """A parser for a subcommand that takes options but no configuration file. Its errors are ConfigErrors.

    Args:
      command: the subcommand's name.
      description: the --help text.
      compiles: whether to add --compile_cache.
    """
    parser = argparse.ArgumentParser(
        f"selfreward_jax {command}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: raise_config_error(_suggest_option(message, parser))
    if compiles:
        default = compile_cache.default_directory()
        parser.add_argument("--compile_cache", default=default, help=_COMPILE_CACHE_HELP)
    return parser


def _suggest_option(message: str, parser: argparse.ArgumentParser) -> str:
    """The parser's error message; if an option does not exist, a message with the most similar one."""
    unknown = message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0]
    if not unknown.startswith("--"):
        return message
    options = [option for action in parser._actions for option in action.option_strings]
    nearest = difflib.get_close_matches(unknown, options, n=1, cutoff=0.0)
    return f"{unknown} is not an option; the nearest one is {nearest[0]}"


def raise_config_error(message: str) -> NoReturn:
    """Raises ConfigError."""
    raise config.ConfigError(message)
