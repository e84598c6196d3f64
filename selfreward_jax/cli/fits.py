"""selfreward-jax fits: does a run fit a TPU slice or some GPUs? Compiles its programs for them, on a machine without.

Prints the bytes that each program takes on a device, by kind, and its collectives. This shows that the programs compile
and fit, not how fast they are. Needs the extra `tpu` or `cuda`: pip install "selfreward-jax[tpu]".

Exit codes: 0 it fits; 1 it does not fit; 2 invalid input.
"""

import argparse
import json
import math
import re
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from selfreward_jax import config
from selfreward_jax.cli import settings
from selfreward_jax.config import validate
from selfreward_jax.console import streams
from selfreward_jax.memory import planner
from selfreward_jax.memory.collectives import parse_collectives, totals_by_kind
from selfreward_jax.memory.machines import GIB, Machine, parse_machine
from selfreward_jax.memory.models import known_config
from selfreward_jax.memory.programs import programs
from selfreward_jax.memory.round_time import format_times, round_times
from selfreward_jax.memory.shapes import Program
from selfreward_jax.memory.targets import target_devices
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import batch_divisor

USABLE = 0.98  # fraction of the memory; the rest is reserved by the system (15.75 of 16 GiB usable on a v5e)


def main(options: argparse.Namespace) -> int:
    """Compiles and reports. Returns the exit code."""
    cfg = settings.load(options.config, options.fields)
    only = [name for name in options.only.split(",") if name]
    return check_fit(cfg, options.topology, options.tokens, only, options.json)


def check_fit(cfg: ConfigDict, topology: str, tokens: int, only: list[str], as_json: bool) -> int:
    """Prints what each program of the run (only those in `only`, if any) takes on each device of a machine.

    Returns:
      The exit code: 0 if all fit, else 1.

    Raises:
      ConfigError: the machine or a setting is not valid.
    """
    machine = parse_machine(topology, "topology")
    devices = target_devices(machine)
    if not (cfg.data.ift or cfg.data.ift_rows):
        cfg.data.ift = cfg.data.eft = "any"  # the seed data do not matter here
    validate.validate(cfg, 1, machine.platform)
    made = planner.plan(cfg, known_config(cfg), machine)
    cfg.update_from_flattened_dict(made.values)
    times = round_times(cfg, known_config(cfg), machine)
    planned = {"settings": made.values, "round_seconds": {t.stage: round(t.seconds) for t in times}}
    if not as_json:
        streams.result(*made.reasons)
    try:
        mesh = make_mesh(cfg.parallel.fsdp, cfg.parallel.tensor, cfg.parallel.replicas, devices)
        validate.validate(cfg, batch_divisor(mesh), machine.platform)
        rows = []
        for program in programs(cfg, known_config(cfg), mesh, tokens or planner.longest_side(cfg), only):
            rows.append(measure_program(program, machine, mesh) | planned)
            streams.result(*([json.dumps(rows[-1])] if as_json else _format_row(rows[-1])))
    except ValueError as error:  # sizes that are not divisible; the message has the numbers
        raise config.ConfigError(str(error)) from None
    fits = all(row["fits"] for row in rows)
    if not as_json:
        streams.result(*format_times(times), "FITS" if fits else "DOES NOT FIT")
        streams.result(*(suggest_fix(cfg, row) for row in rows if not row["fits"]))
    return 0 if fits else 1


def measure_program(program: Program, machine: Machine, mesh: Mesh) -> dict[str, Any]:
    """One program's row: bytes on a device by kind, its peak, its collectives, and whether it fits."""
    row: dict[str, Any] = {"program": program.name, "shapes": program.shapes, "topology": machine.name}
    row |= {"chips": mesh.size, "mesh": dict(mesh.shape), "hbm": machine.memory, "bytes": dict(program.bytes)}
    try:
        compiled = program.lowered.compile()
    except Exception as error:  # the compiler's out-of-memory error has no public type
        if "hbm" not in str(error).lower():
            raise
        return row | {
            "fits": False,
            "peak": _peak_from_error(str(error), sum(program.bytes.values()), program.resident_bytes),
            "collectives": {},
        }
    memory = compiled.memory_analysis()
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = arguments + outputs + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    peak += program.resident_bytes
    row["bytes"]["temporaries"] = max(0, peak - sum(program.bytes.values()))
    fits = peak <= USABLE * row["hbm"]
    return row | {"fits": fits, "peak": peak, "collectives": totals_by_kind(parse_collectives(compiled.as_text()))}


def _peak_from_error(message: str, planned: int, resident: int) -> int:
    """Bytes needed on a device, from the compiler's out-of-memory message.

    Args:
      message: the compiler's message.
      planned: bytes known before compiling: arguments, and what else is resident.
      resident: the part of `planned` that does not belong to the program.
    """
    used = re.search(r"Used ([\d.]+)([KMG]) of|temporaries \(([\d.]+)([KMG])\)", message)
    if used is None:
        return planned
    size, unit = (used[1], used[2]) if used[1] else (used[3], used[4])
    count = int(float(size) * {"K": 1 << 10, "M": 1 << 20, "G": GIB}[unit])
    return count + (resident if used[1] else planned)


def _format_row(row: dict[str, Any]) -> list[str]:
    peak, hbm = row["peak"] / GIB, row["hbm"] / GIB
    kinds = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in row["bytes"].items())
    collectives = ", ".join(f"{n['count']} {kind} ({n['bytes'] / GIB:.2f})" for kind, n in row["collectives"].items())
    verdict = "fits" if row["fits"] else "DOES NOT FIT"
    return [
        f"{row['program']:8} {peak:7.2f} of {hbm:.0f} GiB per device, {verdict}: {row['shapes']}",
        f"         GiB: {kinds}",
        f"         collectives, GiB per device: {collectives or 'none'}",
    ]


def suggest_fix(cfg: ConfigDict, row: dict[str, Any]) -> str:
    """What to change so that a program fits, the smallest change first."""
    stage, hbm, size = row["program"], row["hbm"], row["bytes"]
    used = f"{stage}: needs {row['peak'] / GIB:.1f} GiB per device, which has {hbm / GIB:.0f};"
    if stage in ("sft", "dpo"):
        state = (size["params"] + size["optimizer"]) / hbm
        if state < 0.8:
            remat = "" if cfg.model.remat == "full" else "model.remat=full, "
            now = f"{stage}.grad_accum_steps (now {cfg[stage].grad_accum_steps})"
            return f"{used} {remat}raise {now} or parallel.tensor, or take more chips"
        split = cfg.parallel.fsdp * cfg.parallel.tensor < math.prod(row["mesh"].values())
        more = "raise parallel.fsdp" if split else f"take {2 ** math.ceil(math.log2(state / 0.6))} times the chips"
        adapters = "" if cfg.lora.rank else ", or train adapters (lora.rank=16)"
        return (
            f"{used} parameters and optimizer state alone fill {state:.0%}: {more}, or optimizer.offload=True{adapters}"
        )
    if size.get("training", 0) > 0.4 * hbm:
        return f"{used} the training state is resident too: set dpo.eval_every=0, or take more chips"
    wider = f"raise parallel.sampling_tensor (now {cfg.parallel.sampling_tensor or cfg.parallel.tensor})"
    if stage in ("merge", "reshard") or size["params"] > 0.6 * hbm:
        return f"{used} {wider}, or take more chips"
    return f"{used} lower sampling.max_concurrent (now {cfg.sampling.max_concurrent}) or model.max_length, or {wider}"
