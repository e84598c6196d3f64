"""selfreward-jax check: what a run would do, and what would stop it. Writes nothing."""

import argparse
import os
from collections.abc import Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

from selfreward_jax.cli import settings
from selfreward_jax.config import ConfigError
from selfreward_jax.console import streams
from selfreward_jax.memory import planner
from selfreward_jax.memory.machines import Rates, datasheet, parse_machine
from selfreward_jax.memory.round_time import format_times, round_times
from selfreward_jax.parallel.device_memory import run_elsewhere
from selfreward_jax.report.plan import plan
from selfreward_jax.runs.run import check, make_run
from selfreward_jax.stages import preview
from selfreward_jax.stages.table import TABLE


def main(options: argparse.Namespace) -> int:
    """Prints what a run would do. Returns the exit code."""
    cfg = settings.load(options.config, options.fields)
    if not options.machine:
        cfg, reasons = planner.resolve(cfg, options.workdir)
        return _check_here(cfg, options, reasons)
    machine = parse_machine(options.machine)
    cfg, reasons = planner.check_machine(cfg, options.workdir, machine)
    planned, rates = cfg.copy_and_resolve_references(), datasheet(machine.name, machine.devices)
    reasons += format_times(round_times(cfg, planner.pretrained_config(cfg), machine))
    # What is left is checked here, on one device.
    cfg.parallel.update(dict.fromkeys(("fsdp", "tensor", "replicas", "sampling_tensor"), 1))
    cfg.model.attention = "auto" if cfg.model.attention == "cudnn" else cfg.model.attention
    with run_elsewhere():
        return _check_here(cfg, options, reasons, jax.devices()[:1], (planned, rates) if rates else None)


def _check_here(
    cfg: ConfigDict,
    options: argparse.Namespace,
    reasons: Sequence[str],
    devices: Sequence[jax.Device] | None = None,
    elsewhere: tuple[ConfigDict, Rates] | None = None,
) -> int:
    """Reads all that the run would read, as if it were on these devices; all if not given. `elsewhere` as in `plan`."""
    run = make_run(cfg, options.workdir, devices)
    check(run, TABLE.dependents, options.allow_config_changes)
    _check_writable(run.workdir)
    streams.result(f"{options.config}, workdir {run.workdir}, seed {cfg.seed}, up to m{cfg.iterations}", *reasons)
    with preview.seeded(run) as seeded:
        sets = preview.training_sets(seeded)
        _section("Seeds", preview.describe_seeds(seeded, sets))
        _section("One example of each set, «what carries loss» marked", preview.show_examples(seeded, sets))
        lengths = {name: [len(example.ids) for example in examples] for name, examples in sets.items()}
        run.cfg.data.heldout_prompts = preview.count_held_out(seeded)  # a file may have fewer than was asked for
        _section("Stages", plan(run, TABLE, lengths, seeded.models.chat.tokenizer.vocab_size, elsewhere))
    return 0


def _section(title: str, lines: list[str]) -> None:
    streams.result("", title, "-" * len(title), *lines)


def _check_writable(workdir: epath.Path) -> None:
    """Raises ConfigError if a local working directory could not be written."""
    if "://" in str(workdir):
        return
    try:
        os.lstat(workdir)
        reason = ""
    except OSError as error:
        reason = "" if isinstance(error, FileNotFoundError) else error.strerror
    existing = next(p for p in (workdir, *workdir.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = reason or f"{existing} is no folder that you may write to"
    if reason:
        raise ConfigError(f"workdir {workdir} cannot be written ({reason}): use another --workdir")
