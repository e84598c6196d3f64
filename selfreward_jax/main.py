"""python -m selfreward_jax.main --config=configs/iter2.py[:scale] [--workdir=DIR] [--config.FIELD=VALUE ...]
[--allow_config_changes] [--dry_run] [--compile_cache=DIR]

--workdir is where the run lives (runs/default); what is there is used, what is missing is made. --allow_config_changes goes
on there with other settings, where nothing was made with them yet. --dry_run prints the stages, done and to do, with
rows, memory and time, and does nothing. --compile_cache keeps compiled programs (empty: none). Of several processes,
each: --distributed where the environment knows them (TPU pods, GKE, Slurm, Open MPI), else --num_processes=N
--process_id=I --coordinator_address=HOST:PORT. Exit codes: 0 done; 2 bad input, after one line that says what to mend;
75 asked to stop (SIGTERM, SIGINT), or another process is gone: start again, all processes, with the same command.
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
from selfreward_jax.runs.run import Run
from selfreward_jax.stages import StageError
from selfreward_jax.storage import StorageError
from selfreward_jax.telemetry import compile_cache

BAD_INPUT = (config.ConfigError, DataError, StorageError, TemplateError, ModelFormatError, StageError)


def main(argv: list[str]) -> int:
    """Runs the loop. Returns the exit code."""
    if {"--help", "-h", "--helpfull"} & set(argv):
        print(f"{__doc__}\nSettings, each with its unit and default: selfreward_jax/config.py")
        return 0
    try:
        cfg, workdir = args.parse(argv)
        others = args.processes()
        compile_cache.enable(args.compile_cache_dir())
    except config.ConfigError as error:
        return _refuse(str(error))
    if args.dry_run():
        return show_plan(cfg, workdir)
    if others is None:
        return run(cfg, workdir)
    return processes.supervise(lambda: run(cfg, workdir, others))


def show_plan(cfg: ConfigDict, workdir: str) -> int:
    """Prints what a run would do. Returns the exit code."""
    try:
        validate.validate(cfg, row_devices=1)
        found = Run(cfg, workdir, claim=False)
        found.check(args.allow_config_changes())
        print(f"workdir {workdir}, seed {cfg.seed}, up to m{cfg.iterations}", *plan(found), sep="\n")
    except (*BAD_INPUT, OSError) as error:
        return _refuse(str(error))
    return 0


def run(cfg: ConfigDict, workdir: str, others: dict[str, Any] | None = None) -> int:
    """Runs the loop as one process of several, if `others` says how to find them. Returns the exit code."""
    try:
        if others is not None:
            processes.initialize(others, cfg.parallel.timeout_s)
        with preemption.handle_signals(cfg.shutdown_timeout_s):
            loop.run(cfg, workdir, allow_config_changes=args.allow_config_changes())
        processes.shutdown()
    except preemption.Stopped as stopped:
        processes.shutdown()
        return _refuse(str(stopped), processes.EXIT_RETRY)
    except BAD_INPUT as error:
        processes.abort_all(2, str(error))
        return _refuse(str(error))
    except OSError as error:
        line = f"{error.filename or workdir} cannot be used ({error.strerror or error}): the same command goes on later"
        processes.abort_all(2, line)
        return _refuse(line)
    except processes.ProcessError as error:
        processes.abort_all(error.code, str(error))
        return _refuse(str(error), error.code)
    except Exception as error:
        if processes.is_peer_failure(error):
            processes.abort_all(processes.EXIT_RETRY, processes.peer_failure_message(error))
        if others is not None:
            traceback.print_exc()
            processes.abort_all(1, f"{type(error).__name__}: {error}")
        raise
    return 0


def _refuse(line: str, code: int = 2) -> int:
    print(f"selfreward_jax: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
