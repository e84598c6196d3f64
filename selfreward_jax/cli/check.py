"""selfreward-jax check: what a run would do, and what would stop it. Writes nothing."""

import argparse

from selfreward_jax.cli import settings
from selfreward_jax.config import validate
from selfreward_jax.report.plan import plan
from selfreward_jax.runs.run import check, make_run
from selfreward_jax.stages.table import TABLE


def main(options: argparse.Namespace) -> int:
    """Prints what a run would do. Returns the exit code."""
    cfg = settings.load(options.config, options.fields)
    validate.validate(cfg, row_devices=1)
    planned = make_run(cfg, options.workdir)
    check(planned, TABLE.dependents, options.allow_config_changes)
    print(f"workdir {options.workdir}, seed {cfg.seed}, up to m{cfg.iterations}", *plan(planned, TABLE), sep="\n")
    return 0
