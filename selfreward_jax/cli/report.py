"""selfreward-jax report: rewrites report.html of a run, finished or not."""

import argparse

import jax

from selfreward_jax.console import streams
from selfreward_jax.report.page import Page
from selfreward_jax.runs.run import open_run
from selfreward_jax.stages.table import TABLE
from selfreward_jax.storage import lock


def main(options: argparse.Namespace) -> int:
    """Writes the report. Returns the exit code: 0, or 2 after a one-line warning."""
    jax.config.update("jax_platforms", "cpu")  # a training process may be using the accelerator
    run = open_run(options.workdir)
    if not Page(run, TABLE).write(is_running=lock.is_locked(run.workdir)):
        return 2
    streams.result(str(run.workdir / "report.html"))
    return 0
