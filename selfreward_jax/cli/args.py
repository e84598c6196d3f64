"""The command line: from arguments to settings, and one clear line where they cannot be read."""

import argparse
import difflib
import os
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from selfreward_jax import config
from selfreward_jax.telemetry import compile_cache

_CONFIG = config_flags.DEFINE_config_file("config", None, "Settings: FILE or FILE:SCALE.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/default", "Where the run lives: a folder, or gs://BUCKET/FOLDER.")
_COMPILE_CACHE_HELP = "Folder of compiled programs, kept from run to run; empty: none."
_COMPILE_CACHE = flags.DEFINE_string("compile_cache", compile_cache.default_directory(), _COMPILE_CACHE_HELP)
_ALLOW_HELP = "Go on in a working directory with other settings, where they alter nothing that is made."
_ALLOW_CONFIG_CHANGES = flags.DEFINE_bool("allow_config_changes", False, _ALLOW_HELP)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be done, and do nothing.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes, which the environment knows.")
_PROCESS_FLAGS = {
    "coordinator_address": flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process."),
    "num_processes": flags.DEFINE_integer("num_processes", None, "How many processes there are."),
    "process_id": flags.DEFINE_integer("process_id", None, "Which of them this is, from 0."),
}


def parse(argv: list[str]) -> tuple[ConfigDict, str]:
    """The settings and the working directory that the command line asks for.

    Raises:
      ConfigError: the command line, the configuration file or a field in it is not usable.
    """
    try:
        rest = flags.FLAGS(argv)
        chosen = _CONFIG.value
        _ = chosen and chosen.to_dict()  # a file that failed to load says so only when it is read
    except Exception as error:  # a configuration file is a program: it can fail in any way
        raise config.ConfigError(_explain(argv, error)) from None
    if len(rest) > 1:
        raise config.ConfigError(f"{rest[1]!r} is not an option; options begin with --")
    if chosen is None:
        raise config.ConfigError("--config is missing: for example --config=configs/iter2.py")
    return chosen, _WORKDIR.value


def compile_cache_dir() -> str:
    """The folder of compiled programs; "" for none. After `parse`."""
    return _COMPILE_CACHE.value


def allow_config_changes() -> bool:
    """Whether changed settings are accepted, where nothing was made with them. After `parse`."""
    return _ALLOW_CONFIG_CHANGES.value


def dry_run() -> bool:
    """Whether the plan is wanted, and nothing else. After `parse`."""
    return _DRY_RUN.value


def processes() -> dict[str, Any] | None:
    """How to find the other processes, for `parallel.processes.start`; None where there is only this one. After
    `parse`.

    Raises:
      ConfigError: the options do not say which process of how many this is.
    """
    given = {name: flag.value for name, flag in _PROCESS_FLAGS.items() if flag.value is not None}
    if not given:
        return {} if _DISTRIBUTED.value else None
    lacking = [f"--{name}" for name in _PROCESS_FLAGS if name not in given]
    if lacking:
        named = ", ".join(f"--{n}={v}" for n, v in given.items())
        raise config.ConfigError(f"{named} without {' and '.join(lacking)}: give all three, or --distributed alone")
    host, _, port = given["coordinator_address"].rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise config.ConfigError(
            f"coordinator_address is {given['coordinator_address']!r}; it must be HOST:PORT of the first process"
        )
    if not 0 <= given["process_id"] < given["num_processes"]:
        raise config.ConfigError(
            f"process_id is {given['process_id']}, of num_processes {given['num_processes']}; it must be from 0 to "
            f"{given['num_processes'] - 1}"
        )
    return given


def _explain(argv: list[str], error: Exception) -> str:
    """Why the command line could not be read, on one line. The parser's own errors are several, and some of them
    tracebacks: look first for what people get wrong."""
    words = " ".join(argv[1:]).replace("--config ", "--config=").split(" ")
    options = dict(w.lstrip("-").partition("=")[::2] for w in words if w.startswith("--"))
    path, _, scale = options.get("config", "").partition(":")
    if path and not os.path.isfile(path):
        return f"config is {path!r}, and there is no such file; configs/ has the configurations"
    try:
        known = flatten_config(config.get_config(scale))
    except config.ConfigError as unknown_scale:
        return str(unknown_scale)
    for option, value in options.items():
        field = option.removeprefix("no").removeprefix("config.")
        if not option.removeprefix("no").startswith("config."):
            continue
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1, cutoff=0.0)
            return f"{field} (given as {value!r}) is not a setting; the nearest one is {near[0]}"
        if f"--{option}" in str(error):
            kind = type(known[field]).__name__
            return f"{field} is {value!r}, which is not of type {kind}; its default is {known[field]!r}"
    if not isinstance(error, flags.Error):
        return f"config {path!r} does not load: {type(error).__name__}: {' '.join(str(error).split())}"
    if "Traceback" in str(error):
        return f"config {path!r} does not load: {str(error).strip().splitlines()[-1]}"
    return " ".join(str(error).split())


def flatten_config(c: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Every field by its dotted name, with its value."""
    found: dict[str, Any] = {}
    for name, value in c.items():
        inner = isinstance(value, ConfigDict)
        found |= flatten_config(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


def parser(program: str, description: str, compiles: bool = False) -> argparse.ArgumentParser:
    """A parser for the programs that take options and no configuration; what it cannot read becomes a ConfigError.
    One that `compiles` has the option for it."""
    found = argparse.ArgumentParser(
        f"selfreward_jax.{program}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.error = lambda message: raise_config_error(_suggest_option(message, found))
    if compiles:
        default = compile_cache.default_directory()
        found.add_argument("--compile_cache", default=default, help=_COMPILE_CACHE_HELP)
    return found


def _suggest_option(message: str, of: argparse.ArgumentParser) -> str:
    """The parser's complaint; where it is an option that does not exist, with the one that is most like it."""
    unknown = message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0]
    if not unknown.startswith("--"):
        return message
    options = [option for action in of._actions for option in action.option_strings]
    near = difflib.get_close_matches(unknown, options, n=1, cutoff=0.0)
    return f"{unknown} is not an option; the nearest one is {near[0]}"


def raise_config_error(message: str) -> None:
    """Raises ConfigError."""
    raise config.ConfigError(message)
