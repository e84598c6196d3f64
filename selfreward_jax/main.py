"""Trains m1 ... m_iterations of a self-rewarding run, and evaluates each model.

    python -m selfreward_jax.main --config=configs/iter2.py[:PRESET] [--workdir=DIR] [--config.FIELD=VALUE ...]

  --workdir=DIR            working directory of the run (default: runs/default). Existing artifacts are reused, missing
                           ones are generated. DIR may be gs://BUCKET/FOLDER.
  --config.FIELD=VALUE     overrides a setting.
  --allow_config_changes   resumes a run with changed settings, where no existing artifact depends on them.
  --dry_run                prints the stages, done and pending, with rows, memory and time. Runs nothing.
  --compile_cache=DIR      persistent compilation cache; empty: no cache.

Several processes run one program, each started with the same command. Two ways to connect them:

  --distributed            for TPU pods, GKE, Slurm and Open MPI, whose environment describes the processes.
  --num_processes=N --process_id=I --coordinator_address=HOST:PORT

Exit codes: 0 done; 2 invalid input, with a one-line message; 75 stopped by SIGTERM or SIGINT, or another process is
gone. After 75, start all processes again with the same command: the run resumes.
"""

import sys
import traceback
from typing import Any

from ml_collections import ConfigDict

from selfreward_jax import config, loop
from selfreward_jax.cli import args
from selfreward_jax.config import validate
from selfreward_jax.data.seed_sets import DataError
from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.method.templates import TemplateError
from selfreward_jax.parallel import preemption, processes
from selfreward_jax.report.plan import plan
from selfreward_jax.runs.run import check, make_run
from selfreward_jax.stages import StageError
from selfreward_jax.stages.table import TABLE
from selfreward_jax.storage import StorageError
from selfreward_jax.telemetry import compile_cache

INPUT_ERRORS = (config.ConfigError, DataError, StorageError, TemplateError, ModelFormatError, StageError)


def main(argv: list[str]) -> int:
    """Runs the training loop. Returns the exit code."""
    if {"--help", "-h", "--helpfull"} & set(argv):
        print(f"{__doc__}\nAll settings, with units and defaults: selfreward_jax/config/defaults.py")
        return 0
    try:
        cfg, workdir = args.parse(argv)
        distributed = args.distributed_options()
        compile_cache.enable(args.compile_cache_dir())
    except config.ConfigError as error:
        return _print_error(str(error))
    if args.dry_run():
        return show_plan(cfg, workdir)
    if distributed is None:
        return run(cfg, workdir)
    return processes.supervise(lambda: run(cfg, workdir, distributed))


def show_plan(cfg: ConfigDict, workdir: str) -> int:
    """Prints what a run would do. Returns the exit code."""
    try:
        validate.validate(cfg, row_devices=1)
        planned = make_run(cfg, workdir)
        check(planned, TABLE.dependents, args.allow_config_changes())
        print(f"workdir {workdir}, seed {cfg.seed}, up to m{cfg.iterations}", *plan(planned, TABLE), sep="\n")
    except (*INPUT_ERRORS, OSError) as error:
        return _print_error(str(error))
    return 0


def run(cfg: ConfigDict, workdir: str, distributed: dict[str, Any] | None = None) -> int:
    """Runs the training loop in this process.

    Args:
      cfg: the settings.
      workdir: the working directory.
      distributed: how to find the other processes, from `args.distributed_options`; None if there are none.

    Returns:
      The exit code.
    """
    try:
        if distributed is not None:
            processes.initialize(distributed, cfg.parallel.timeout_s)
        with preemption.handle_signals(cfg.shutdown_timeout_s):
            loop.run(cfg, workdir, allow_config_changes=args.allow_config_changes())
        processes.shutdown()
    except preemption.Stopped as stopped:
        processes.shutdown()
        return _print_error(str(stopped), processes.EXIT_RETRY)
    except INPUT_ERRORS as error:
        processes.abort_all(2, str(error))
        return _print_error(str(error))
    except OSError as error:
        reason = error.strerror or error
        line = f"{error.filename or workdir} cannot be used ({reason}): repair it, then the same command resumes"
        processes.abort_all(2, line)
        return _print_error(line)
    except processes.ProcessError as error:
        processes.abort_all(error.code, str(error))
        return _print_error(str(error), error.code)
    except Exception as error:
        if processes.is_peer_failure(error):
            processes.abort_all(processes.EXIT_RETRY, processes.peer_failure_message(error))
        if distributed is not None:
            traceback.print_exc()
            processes.abort_all(1, f"{type(error).__name__}: {error}")
        raise
    return 0


def _print_error(line: str, code: int = 2) -> int:
    """Prints a one-line error message. Returns the exit code."""
    print(f"selfreward_jax: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
