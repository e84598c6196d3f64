"""selfreward-jax fits: does a run fit a TPU slice? Compiles its programs for the slice, on a machine without a TPU.

Prints the bytes that each program takes on a chip, by kind, and its collectives. This shows that the programs compile
and fit, not how fast they are. Needs the extra `tpu`: pip install "selfreward-jax[tpu]".

Exit codes: 0 it fits; 1 it does not fit; 2 invalid input.
"""

import argparse
import json
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from selfreward_jax import config
from selfreward_jax.cli import settings
from selfreward_jax.config import validate
from selfreward_jax.console import streams
from selfreward_jax.memory import planner
from selfreward_jax.memory.collectives import parse_collectives, totals_by_kind
from selfreward_jax.memory.machines import CHIPS, GIB, parse_machine
from selfreward_jax.memory.models import known_config
from selfreward_jax.memory.programs import programs
from selfreward_jax.memory.round_time import format_times, round_times
from selfreward_jax.memory.shapes import Program
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import batch_divisor

USABLE = 0.98  # fraction of the memory; the rest is reserved by the system (15.75 of 16 GiB usable on a v5e)
# Answers to what libtpu would ask a cloud machine for. The last one lets several processes load libtpu.
_LIBTPU_ENV = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def main(options: argparse.Namespace) -> int:
    """Compiles and reports. Returns the exit code."""
    cfg = settings.load(options.config, options.fields)
    only = [name for name in options.only.split(",") if name]
    return check_fit(cfg, options.topology, options.tokens, only, options.json)


def check_fit(cfg: ConfigDict, topology: str, tokens: int, only: list[str], as_json: bool) -> int:
    """Prints what each program of the run (only those in `only`, if any) takes on the slice.

    Returns:
      The exit code: 0 if all fit, else 1.

    Raises:
      ConfigError: the slice or a setting is not valid.
    """
    devices = slice_devices(topology)
    if not (cfg.data.ift or cfg.data.ift_rows):
        cfg.data.ift = cfg.data.eft = "any"  # the seed data do not matter here
    validate.validate(cfg, 1, "tpu")
    made = planner.plan(cfg, known_config(cfg), parse_machine(topology))
    cfg.update_from_flattened_dict(made.values)
    times = round_times(cfg, known_config(cfg), parse_machine(topology))
    planned = {"settings": made.values, "round_seconds": {t.stage: round(t.seconds) for t in times}}
    if not as_json:
        streams.result(*made.reasons)
    try:
        mesh = make_mesh(cfg.parallel.fsdp, cfg.parallel.tensor, cfg.parallel.replicas, devices)
        validate.validate(cfg, batch_divisor(mesh), "tpu")
        rows = []
        for program in programs(cfg, known_config(cfg), mesh, tokens or planner.longest_side(cfg), only):
            rows.append(measure_program(program, topology, mesh) | planned)
            streams.result(*([json.dumps(rows[-1])] if as_json else _format_row(rows[-1])))
    except ValueError as error:  # sizes that are not divisible; the message has the numbers
        raise config.ConfigError(str(error)) from None
    fits = all(row["fits"] for row in rows)
    if not as_json:
        streams.result(*format_times(times), "FITS" if fits else "DOES NOT FIT")
        streams.result(*(suggest_fix(cfg, row) for row in rows if not row["fits"]))
    return 0 if fits else 1


def slice_devices(topology: str) -> list[Any]:
    """The devices of a TPU slice, which need not exist.

    Raises:
      ConfigError: there is no such slice, or libtpu is not installed.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        raise config.ConfigError(
            f"topology is {topology!r}; it must be a generation ({', '.join(CHIPS)}) and a shape, such as v5p:4x4x4"
        )
    os.environ |= _LIBTPU_ENV
    jax.config.update("jax_platforms", "cpu")
    sides = [*map(int, shape.split("x")), 1][:3]
    options: dict[str, Any] = {"chips_per_host_bounds": [min(2, side) for side in sides[:2]] + [1]}  # at most 2 x 2
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # a chip's two cores are one device, as in a run
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # the plugin's errors have no public types
        remedy = 'pip install "selfreward-jax[tpu]" brings libtpu' if "libtpu" in str(error) else "give another shape"
        raise config.ConfigError(f"topology {topology}: {str(error).splitlines()[0]} ({remedy})") from None


def measure_program(program: Program, topology: str, mesh: Mesh) -> dict[str, Any]:
    """One program's row: bytes on a chip by kind, its peak, its collectives, and whether it fits."""
    generation = topology.partition(":")[0]
    row: dict[str, Any] = {"program": program.name, "shapes": program.shapes, "topology": topology, "chips": mesh.size}
    row |= {"mesh": dict(mesh.shape), "hbm": CHIPS[generation] * GIB}
    row["bytes"] = dict(program.bytes)
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
        f"{row['program']:8} {peak:7.2f} of {hbm:.0f} GiB per chip, {verdict}: {row['shapes']}",
        f"         GiB: {kinds}",
        f"         collectives, GiB per device: {collectives or 'none'}",
    ]


def suggest_fix(cfg: ConfigDict, row: dict[str, Any]) -> str:
    """What to change so that a program fits, the smallest change first."""
    stage, hbm, size = row["program"], row["hbm"], row["bytes"]
    used = f"{stage}: needs {row['peak'] / GIB:.1f} GiB per chip, which has {hbm / GIB:.0f};"
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
