"""Rewrites report.html of a run, finished or not: python -m selfreward_jax report --workdir=runs/a"""

import sys

import jax

from selfreward_jax import storage
from selfreward_jax.cli import args
from selfreward_jax.config import ConfigError
from selfreward_jax.report.page import Page
from selfreward_jax.runs.run import open_run
from selfreward_jax.stages.table import TABLE
from selfreward_jax.storage import lock


def main(argv: list[str]) -> int:
    """Writes the report. Returns the exit code: 0, or 2 after a one-line error message."""
    parser = args.make_parser("report", __doc__)
    parser.add_argument("--workdir", required=True, help="working directory of the run")
    try:
        workdir = parser.parse_args(argv[1:]).workdir
        jax.config.update("jax_platforms", "cpu")  # a training process may be using the accelerator
        run = open_run(workdir)
        if not Page(run, TABLE).write(is_running=lock.is_locked(run.workdir)):
            return 2
    except (ConfigError, storage.StorageError, OSError) as error:
        print(f"selfreward_jax: {error}", file=sys.stderr)
        return 2
    print(run.workdir / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
