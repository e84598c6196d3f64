"""Writes report.html of a run anew, finished or not: python -m selfreward_jax.report --workdir=runs/a"""

import sys

from selfreward_jax import command, storage
from selfreward_jax.config import ConfigError
from selfreward_jax.report.page import Page
from selfreward_jax.run import Run


def main(argv: list[str]) -> int:
    """Writes it. Returns the exit code: 0, or 2 after one line that says what to mend."""
    parser = command.parser("report", __doc__)
    parser.add_argument("--workdir", required=True, help="the run's working directory")
    try:
        run = Run.reopen(parser.parse_args(argv[1:]).workdir)
        Page(run).write()
    except (ConfigError, storage.StorageError, OSError) as error:
        print(f"selfreward_jax: {error}", file=sys.stderr)
        return 2
    print(run.dir / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
