"""Which preset fits which machine? Writes docs/fits.md.

    python -m benchmarks.fit_table [--rows=8b,h100] [--only=prefill,decode] [--write [--missing]]

Each row comes from `selfreward-jax fits` with the options shown: the run's own programs, compiled for the machine, with
what the planner chooses where they leave it open. Rows of TPUs need the extra `tpu`, those of GPUs the extra `cuda`.
Prints JSON lines. With --write, new rows are merged into benchmarks/fit_table.jsonl, and the document is written from
all rows.
"""

import json
import subprocess
import sys
from pathlib import Path

from absl import app, flags

from selfreward_jax import config
from selfreward_jax.memory import planner
from selfreward_jax.memory.machines import parse_machine
from selfreward_jax.memory.models import known_config
from selfreward_jax.memory.round_time import ASSUMPTIONS, round_times

_ROWS = flags.DEFINE_string("rows", "", "Only rows whose name or machine contains one of these, separated by commas.")
_MISSING = flags.DEFINE_bool("missing", False, "With --write: only rows that are not stored yet.")
_ONLY = flags.DEFINE_list("only", [], "Compile only these programs; stored rows of others stay.")
_WRITE = flags.DEFINE_bool("write", False, "Store the rows and write docs/fits.md.")
GIB = 1 << 30
ROOT = Path(__file__).parents[1]
ROWS_FILE, DOCUMENT = ROOT / "benchmarks/fit_table.jsonl", ROOT / "docs/fits.md"

# Name, preset, machine, options; the planner chooses what they leave open.
COMPILED = [
    ("tiny", "tiny", "v5e:1x1", ""),
    ("micro", "micro", "v5e:1x1", ""),
    ("scratch", "scratch", "v5e:1x1", ""),
    ("135m", "smollm2_135m", "v5e:1x1", ""),
    ("135m", "smollm2_135m", "v5e:2x2", ""),
    ("270m gemma3", "gemma3_270m", "v5e:1x1", ""),
    ("1b", "tinyllama", "v5e:2x2", ""),
    ("1b", "tinyllama", "v5e:2x4", ""),
    ("1b", "tinyllama", "v6e:2x2", ""),
    ("1b gemma3", "gemma3_1b", "v5e:2x2", ""),
    ("3b", "smollm3_3b", "v5e:4x4", ""),
    ("8b", "llama3_8b", "v5e:4x4", ""),
    ("8b", "llama3_8b", "v5e:2x4", ""),
    ("8b", "llama3_8b", "v6e:2x4", ""),
    ("8b", "llama3_8b", "v5p:2x2x2", ""),
    ("8b", "llama3_8b", "v4:2x2x4", ""),
    ("8b qwen3", "qwen3_8b", "v5e:4x4", ""),
    ("8b lora", "llama3_8b", "v5e:2x2", "--config.lora.rank=16"),
    ("27b gemma3", "llama3_8b", "v5p:4x4x4", "--config.model.init=hub:google/gemma-3-27b-pt@main"),
    ("30b qwen3 moe", "qwen3_8b", "v5p:4x4x4", "--config.model.init=hub:Qwen/Qwen3-30B-A3B-Base@main"),
    ("70b", "llama2_70b", "v5p:4x4x4", ""),
    ("70b", "llama2_70b", "v4:4x4x8", "--config.sft.batch_size=32 --config.dpo.batch_size=32"),
    ("70b", "llama2_70b", "v6e:8x8", "--config.dpo.eval_every=0"),
    ("135m", "smollm2_135m", "t4:1", ""),
    ("270m gemma3", "gemma3_270m", "l4:1", ""),
    ("0.6b qwen3", "qwen3_0_6b", "h100:1", ""),
    ("1b", "tinyllama", "h100:1", ""),
    ("1b", "tinyllama", "a100-40:1", ""),
    ("1b gemma3", "gemma3_1b", "h100:1", ""),
    ("3b", "smollm3_3b", "h100:4", ""),
    ("8b", "llama3_8b", "h100:8", ""),
    ("8b", "llama3_8b", "a100:8", ""),
    ("8b qwen3", "qwen3_8b", "h100:8", ""),
    ("8b lora", "llama3_8b", "h100:2", "--config.lora.rank=16"),
    ("70b", "llama2_70b", "h100:64", ""),
    ("70b", "llama2_70b", "h200:32", ""),
]


# Name, preset, machine: the seconds of a round's stages, by arithmetic.
TIMED = [
    ("135m", "smollm2_135m", "t4:1"),
    ("270m gemma3", "gemma3_270m", "l4:1"),
    ("1b", "tinyllama", "h100:1"),
    ("1b", "tinyllama", "v5e:2x4"),
    ("8b", "llama3_8b", "v5e:4x4"),
    ("8b", "llama3_8b", "v6e:2x4"),
    ("8b", "llama3_8b", "h100:8"),
    ("70b", "llama2_70b", "v5p:4x4x4"),
]


HEAD = """# What fits where

Made by `python -m benchmarks.fit_table --write`.

Each figure is the peak memory of one program of a run, in GiB on a device. `selfreward-jax fits` compiles it
for the machine, without one: with libtpu's compiler for TPU slices, with the CUDA plugin's for GPUs. This proves that
the programs compile and fit. It says nothing about speed.

- The memory of a GPU is what JAX takes of it by itself, three quarters.
- DPO has as many tokens a side as a new prompt and its response may have.
- A figure in brackets does not fit. Where the compiler gave up early, it is what it had requested by then.
- Reshard is the larger of two steps: moving the float32 weights into the sampling layout, or merging adapters before
  it.
- Prefill, insertion into the slots and decode are the largest of all stages, with prompts of maximal length.
- The plan is `parallel.fsdp` x `parallel.tensor`, `parallel.sampling_tensor`, `dpo.grad_accum_steps` and
  `sampling.max_concurrent`, as the planner chooses them or the preset gives them.

| model | machine | memory | SFT | DPO | reference | reshard | prefill | insert | decode | | plan | settings |
| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --- | --- | --- |
"""
TIMED_HEAD = f"""
## A round, by arithmetic

Seconds of the stages of one round with the settings of the preset, and what the planner chooses. `selfreward-jax fits`
and `selfreward-jax check --machine` print the same for your settings.

{ASSUMPTIONS[0].upper()}{ASSUMPTIONS[1:]}

| model | machine | max_concurrent | prompts | responses | judgments | reference | DPO | load and save | minutes |
| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |
"""


def compile_rows(name: str, preset: str, topology: str, options: str, only: list[str]) -> list[dict]:
    """The rows of `fits` for one slice, for the programs in `only` or for all."""
    command = [sys.executable, "-m", "selfreward_jax", "fits", f"--config=configs/iter3.py:{preset}", "--json"]
    command += [f"--topology={topology}", *options.split()]
    command += [f"--only={','.join(only)}"] if only else []
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode == 2 or not rows:
        rows = [{"program": "refused", "fits": False, "error": (result.stderr.strip() or "?").splitlines()[-1]}]
    return [{"name": name, "preset": preset, "slice": topology, "options": options, **row} for row in rows]


def time_row(name: str, preset: str, text: str) -> str:
    """A row of the table of times."""
    c, machine = config.get_config(preset), parse_machine(text)
    c.update_from_flattened_dict(planner.plan(c, known_config(c), machine).values)
    seconds = [stage.seconds for stage in round_times(c, known_config(c), machine)]
    cells = [f"{name} ({preset})", text, f"{c.sampling.max_concurrent:,}", *(f"{s:,.0f}" for s in seconds)]
    return f"| {' | '.join([*cells, f'{sum(seconds) / 60:,.0f}'])} |"


def document(compiled: list[dict]) -> str:
    """The text of docs/fits.md."""
    lines = HEAD.splitlines()
    groups: dict[tuple, dict] = {}
    for row in compiled:
        groups.setdefault((row["name"], row["preset"], row["slice"], row["options"]), {})[row["program"]] = row
    for (name, preset, topology, options), programs in groups.items():
        if "refused" in programs:
            error = programs["refused"]["error"]
            lines.append(f"| {name} ({preset}) | {topology} | | | | | | | | | refused: {error} | | `{options}` |")
            continue
        reshards = [programs[p] for p in ("merge", "reshard") if p in programs]
        programs["reshard"] = max(reshards, key=lambda p: p["peak"], default=None)
        cells = [_cell(programs.get(p)) for p in ("sft", "dpo", "reference", "reshard", "prefill", "insert", "decode")]
        first = next(iter(programs.values()))
        verdict = "FITS" if all(p["fits"] for p in programs.values()) else "DOES NOT FIT"
        options_cell = f"`{options}`" if options else ""
        plan = _plan(preset, first["settings"])
        row_cells = [f"{name} ({preset})", topology, f"{first['hbm'] / GIB:.0f}", *cells, verdict, plan, options_cell]
        lines.append(f"| {' | '.join(row_cells)} |")
    lines += [*TIMED_HEAD.splitlines(), *(time_row(*entry) for entry in TIMED)]
    return "\n".join(lines) + "\n"


def _plan(preset: str, chosen: dict[str, int]) -> str:
    c = config.get_config(preset)
    c.update_from_flattened_dict(chosen)
    p = c.parallel
    sizes = p.sampling_tensor or p.tensor, c.dpo.grad_accum_steps, f"{c.sampling.max_concurrent:,}"
    return " / ".join(map(str, (f"{p.fsdp} x {p.tensor}", *sizes)))


def _cell(row: dict | None) -> str:
    if row is None:
        return "-"
    size = f"{row['peak'] / GIB:.1f}"
    return size if row["fits"] else f"({size})"


def _is_of(row: dict, entry: tuple) -> bool:
    """Whether a stored row belongs to an entry of COMPILED."""
    return (row["name"], row["slice"], row["options"]) == (entry[0], entry[2], entry[3])


def main(_: list[str]) -> None:
    """Compiles and prints; writes with --write."""
    stored = []
    if ROWS_FILE.exists() and _WRITE.value:
        stored = [json.loads(line) for line in ROWS_FILE.read_text().splitlines()]
    for entry in COMPILED:
        if _ROWS.value and not any(part in f"{entry[0]} {entry[2]}" for part in _ROWS.value.split(",")):
            continue
        if _MISSING.value and any(_is_of(row, entry) for row in stored):
            continue
        rows = compile_rows(*entry, _ONLY.value)
        for row in rows:
            print(json.dumps(row), flush=True)
        replaced = [k for k in stored if _is_of(k, entry) and (not _ONLY.value or k["program"] in _ONLY.value)]
        stored = [k for k in stored if k not in replaced] + rows
        if _WRITE.value:
            order = [(name, topology, options) for name, _, topology, options in COMPILED]
            stored = [k for k in stored if (k["name"], k["slice"], k["options"]) in order]
            stored.sort(key=lambda k: order.index((k["name"], k["slice"], k["options"])))
            ROWS_FILE.write_text("".join(json.dumps(k) + "\n" for k in stored))
    if _WRITE.value:
        DOCUMENT.write_text(document(stored))


if __name__ == "__main__":
    app.run(main)
