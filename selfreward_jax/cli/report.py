"""Writes report.html of a run anew, finished or not: python -m selfreward_jax report --workdir=runs/a"""

import sys

import jax

from selfreward_jax import storage
from selfreward_jax.cli import args
from selfreward_jax.config import ConfigError
from selfreward_jax.report.page import Page
from selfreward_jax.runs.run import Run


def main(argv: list[str]) -> int:
    """Writes it. Returns the exit code: 0, or 2 after one line that says what to mend."""
    parser = args.parser("report", __doc__)
    parser.add_argument("--workdir", required=True, help="the run's working directory")
    try:
        workdir = parser.parse_args(argv[1:]).workdir
        jax.config.update("jax_platforms", "cpu")  # an accelerator may be at work on the run
        run = Run.reopen(workdir)
        if not Page(run).write():
            return 2
    except (ConfigError, storage.StorageError, OSError) as error:
        print(f"selfreward_jax: {error}", file=sys.stderr)
        return 2
    print(run.workdir / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
