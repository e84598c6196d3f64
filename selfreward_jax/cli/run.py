"""selfreward-jax run: trains m1 ... m_iterations of a self-rewarding run, and evaluates each model.

Several processes run one program, each started with the same command; see docs/devices.md.

Exit codes: 0 done; 2 invalid input, with a one-line message; 75 stopped by SIGTERM or SIGINT, or another process is
gone. After 75, start all processes again with the same command: the run resumes.
"""

import argparse
from typing import Any

from selfreward_jax import loop
from selfreward_jax.cli import check, settings
from selfreward_jax.config import ConfigError, InputError
from selfreward_jax.console import streams
from selfreward_jax.parallel import preemption, processes
from selfreward_jax.telemetry import compile_cache

PROCESS_OPTIONS = ("coordinator_address", "num_processes", "process_id")


def main(options: argparse.Namespace) -> int:
    """Runs the training loop. Returns the exit code."""
    cfg = settings.load(options.config, options.fields)
    distributed = distributed_options(options)
    if options.dry_run:
        return check.main(options)
    if options.machine:
        raise ConfigError(f"--machine={options.machine} is for --dry_run: a run takes the devices that are here")
    compile_cache.enable(options.compile_cache, options.workdir)
    if distributed is None:
        return run(cfg, options)
    return processes.supervise(lambda: run(cfg, options, distributed))


def run(cfg: Any, options: argparse.Namespace, distributed: dict[str, Any] | None = None) -> int:
    """Runs the training loop in this process.

    Args:
      cfg: the settings.
      options: the other options.
      distributed: how to find the other processes, from `distributed_options`; None if there are none.

    Returns:
      The exit code.
    """
    try:
        if distributed is not None:
            processes.initialize(distributed, cfg.parallel.timeout_s)
        with preemption.handle_signals(cfg.shutdown_timeout_s):
            loop.run(cfg, options.workdir, allow_config_changes=options.allow_config_changes)
        processes.shutdown()
    except preemption.Stopped as stopped:
        processes.shutdown()
        return _print_error(str(stopped), processes.EXIT_RETRY)
    except InputError as error:
        processes.abort_all(2, str(error))
        return _print_error(str(error))
    except OSError as error:
        reason = error.strerror or error
        line = (
            f"{error.filename or options.workdir} cannot be used ({reason}): repair it, then the same command resumes"
        )
        processes.abort_all(2, line)
        return _print_error(line)
    except processes.ProcessError as error:
        processes.abort_all(error.code, str(error))
        return _print_error(str(error), error.code)
    except Exception as error:
        if processes.is_peer_failure(error):
            processes.abort_all(processes.EXIT_RETRY, processes.peer_failure_message(error))
        if distributed is not None:
            streams.failure()
            processes.abort_all(1, f"{type(error).__name__}: {error}")
        raise
    return 0


def distributed_options(options: argparse.Namespace) -> dict[str, Any] | None:
    """How to find the other processes, for `parallel.processes.initialize`.

    Returns:
      None if this is the only process; {} if the environment knows the others; else the three options by name.

    Raises:
      ConfigError: the options are incomplete or out of range.
    """
    given = {name: value for name in PROCESS_OPTIONS if (value := getattr(options, name)) is not None}
    if not given:
        return {} if options.distributed else None
    missing = [f"--{name}" for name in PROCESS_OPTIONS if name not in given]
    if missing:
        present = ", ".join(f"--{n}={v}" for n, v in given.items())
        raise ConfigError(f"{present} without {' and '.join(missing)}: give all three, or --distributed alone")
    host, _, port = given["coordinator_address"].rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"coordinator_address is {given['coordinator_address']!r}; it must be HOST:PORT of the first process"
        )
    if not 0 <= given["process_id"] < given["num_processes"]:
        raise ConfigError(
            f"process_id is {given['process_id']}, of num_processes {given['num_processes']}; it must be from 0 to "
            f"{given['num_processes'] - 1}"
        )
    return given


def _print_error(line: str, code: int = 2) -> int:
    """Prints a one-line error message. Returns the exit code."""
    streams.message(f"selfreward_jax: {line}")
    return code
