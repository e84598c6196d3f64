"""Which preset fits which machine? Writes docs/fits.md.

    python -m benchmarks.fit_table [--rows=8b,70b] [--only=prefill,decode] [--write [--missing]]

Each row of TPU figures comes from `selfreward-jax fits` with the options shown: the run's own programs,
compiled for the slice. Rows for GPUs are estimated, not compiled: training state, activations, the widest layer after
all-gather, and a chunk of logits. Prints JSON lines. With --write, new rows are merged into benchmarks/fit_table.jsonl,
and the document is written from all rows.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

from absl import app, flags

from selfreward_jax import config
from selfreward_jax.config import validate
from selfreward_jax.llm.parameters import is_param_spec, param_specs, parameter_count
from selfreward_jax.memory.models import known_config
from selfreward_jax.train.logprobs import MAX_LOGITS

_ROWS = flags.DEFINE_string("rows", "", "Only rows whose name contains one of these, separated by commas.")
_MISSING = flags.DEFINE_bool("missing", False, "With --write: only rows that are not stored yet.")
_ONLY = flags.DEFINE_list("only", [], "Compile only these programs; stored rows of others stay.")
_WRITE = flags.DEFINE_bool("write", False, "Store the rows and write docs/fits.md.")
GIB = 1 << 30
ROOT = Path(__file__).parents[1]
ROWS_FILE, DOCUMENT = ROOT / "benchmarks/fit_table.jsonl", ROOT / "docs/fits.md"

_BATCH_64 = "--config.sampling.max_concurrent=64"
# Name, preset, slice, options. DPO at 2,048 tokens per side for pretrained models.
COMPILED = [
    ("tiny", "tiny", "v5e:1x1", ""),
    ("micro", "micro", "v5e:1x1", ""),
    ("scratch", "scratch", "v5e:1x1", ""),
    ("135m", "smollm2_135m", "v5e:2x2", ""),
    ("135m", "smollm2_135m", "v4:2x2x1", ""),
    ("135m", "smollm2_135m", "v5p:2x2x1", ""),
    ("135m", "smollm2_135m", "v6e:2x2", ""),
    ("1b", "tinyllama", "v5e:2x2", "--config.parallel.fsdp=4"),
    ("1b", "tinyllama", "v5e:1x1", "--config.sft.grad_accum_steps=16 --config.dpo.grad_accum_steps=16"),
    ("1b", "tinyllama", "v4:2x2x1", "--config.parallel.fsdp=4"),
    ("1b", "tinyllama", "v5p:2x2x1", "--config.parallel.fsdp=4"),
    ("1b", "tinyllama", "v6e:2x2", "--config.parallel.fsdp=4"),
    ("1b gemma3", "gemma3_1b", "v5e:2x2", "--config.parallel.fsdp=4"),
    ("1b gemma3", "gemma3_1b", "v5p:2x2x1", "--config.parallel.fsdp=4"),
    ("8b", "llama3_8b", "v5e:4x4", f"--config.parallel.fsdp=16 --config.parallel.sampling_tensor=8 {_BATCH_64}"),
    ("8b", "llama3_8b", "v5e:2x4", f"--config.parallel.fsdp=8 --config.parallel.sampling_tensor=8 {_BATCH_64}"),
    ("8b", "llama3_8b", "v5p:2x2x2", "--config.parallel.fsdp=8 --config.parallel.sampling_tensor=2"),
    ("8b", "llama3_8b", "v6e:4x4", f"--config.parallel.fsdp=16 --config.parallel.sampling_tensor=4 {_BATCH_64}"),
    ("8b", "llama3_8b", "v4:2x2x4", f"--config.parallel.fsdp=16 --config.parallel.sampling_tensor=4 {_BATCH_64}"),
    ("8b qwen3", "qwen3_8b", "v5e:4x4", f"--config.parallel.fsdp=16 --config.parallel.sampling_tensor=8 {_BATCH_64}"),
    (
        "8b lora",
        "llama3_8b",
        "v5e:2x2",
        "--config.lora.rank=16 --config.parallel.fsdp=4 --config.parallel.sampling_tensor=4 "
        "--config.sampling.max_concurrent=16 --config.sft.grad_accum_steps=4 --config.dpo.grad_accum_steps=4",
    ),
    (
        "27b gemma3",
        "llama3_8b",
        "v5p:4x4x4",
        "--config.model.init=hub:google/gemma-3-27b-pt@main --config.parallel.fsdp=16 --config.parallel.tensor=4 "
        "--config.parallel.sampling_tensor=8",
    ),
    (
        "30b qwen3 moe",
        "qwen3_8b",
        "v5p:4x4x4",
        "--config.model.init=hub:Qwen/Qwen3-30B-A3B-Base@main --config.parallel.fsdp=16 --config.parallel.tensor=4 "
        "--config.parallel.sampling_tensor=4",
    ),
    ("70b", "llama2_70b", "v5p:4x4x4", "--config.parallel.sampling_tensor=8"),
    ("70b", "llama2_70b", "v5p:2x2x4", "--config.parallel.fsdp=4 --config.parallel.sampling_tensor=8"),
    (
        "70b",
        "llama2_70b",
        "v4:4x4x8",
        "--config.parallel.fsdp=16 --config.parallel.tensor=8 --config.sampling.max_concurrent=128",
    ),
    ("70b", "llama2_70b", "v6e:8x8", "--config.parallel.fsdp=16 --config.parallel.sampling_tensor=8"),
    (
        "70b",
        "llama2_70b",
        "v5e:16x16",
        "--config.parallel.fsdp=32 --config.parallel.tensor=8 --config.sft.batch_size=32 --config.dpo.batch_size=32",
    ),
]
# The arguments of estimate_gpu.
ESTIMATED = [
    ("135m", "smollm2_135m", "H100", 1, 80, 1, 1),
    ("1b", "tinyllama", "H100", 1, 80, 1, 1),
    ("8b", "llama3_8b", "H100", 8, 80, 1, 1),
    ("8b", "llama3_8b", "H200", 8, 141, 1, 1),
    ("70b", "llama2_70b", "H100", 64, 80, 4, 8),
    ("70b", "llama2_70b", "H200", 8, 141, 1, 8),
    ("70b", "llama2_70b", "H200", 32, 141, 4, 8),
]


HEAD = """# What fits where

Made by `python -m benchmarks.fit_table --write`.

Each figure is the peak memory of one program of a run, in GiB on a chip. `selfreward-jax fits` compiles it
for the slice with libtpu's compiler, without a TPU. This proves that the programs compile and fit. It says nothing
about speed.

- DPO has 2,048 tokens a side for pretrained models.
- A figure in brackets does not fit. Where the compiler gave up early, it is what it had requested by then.
- Reshard is the larger of two steps: moving the float32 weights into the sampling layout, or merging adapters before
  it.
- Prefill and decode are the largest of all stages, with prompts of maximal length.

| model | slice | memory | SFT | DPO | reshard | prefill | decode | | settings |
| --- | --- | --: | --: | --: | --: | --: | --: | --- | --- |
"""
ESTIMATED_HEAD = """
## GPUs, estimated

By arithmetic alone; the formulas are in the script. All GPUs share each weight, and sampling is in bfloat16.

| model | GPUs | memory | DPO | sampling | |
| --- | --- | --: | --: | --: | --- |
"""


def compile_rows(name: str, preset: str, topology: str, options: str, only: list[str]) -> list[dict]:
    """The rows of `fits` for one slice, for the programs in `only` or for all."""
    command = [sys.executable, "-m", "selfreward_jax", "fits", f"--config=configs/iter3.py:{preset}", "--json"]
    command += [f"--topology={topology}", *options.split()]
    command += [] if preset in ("tiny", "micro", "scratch") else ["--tokens=2048"]
    command += [f"--only={','.join(only)}"] if only else []
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode == 2 or not rows:
        rows = [{"program": "refused", "fits": False, "error": (result.stderr.strip() or "?").splitlines()[-1]}]
    return [{"name": name, "preset": preset, "slice": topology, "options": options, **row} for row in rows]


def estimate_gpu(name: str, preset: str, gpu: str, count: int, memory: int, tensor: int, sampling_tensor: int) -> dict:
    """Memory of DPO and sampling on each GPU, by arithmetic; all GPUs share each weight.

    Args:
      name, preset: the model.
      gpu, count, memory: the kind of GPU, the number of GPUs, GiB of each.
      tensor, sampling_tensor: devices that share each matrix product in training and in sampling.
    """
    c = config.get_config(preset)
    model = known_config(c)
    c.data.ift = c.data.eft = "any"
    validate.validate(c, count // tensor)
    total, rows = parameter_count(param_specs(model)), 2 * c.dpo.batch_size * tensor // count
    layer = parameter_count(param_specs(model)["layers"]) // model.num_layers
    largest = max(math.prod(w.shape) for w in _flatten(param_specs(model)))
    # Stacked layers are gathered one layer at a time.
    widest = max(largest // model.num_layers, model.vocab_size * model.dim)
    state = 16 * total / count  # float32 weights, gradients and two moments
    activations = 2 * rows * 2048 * model.dim * model.num_layers
    # One layer recomputed: about 16 arrays as wide as the stream and 3 as wide as the feed-forward, in bfloat16.
    recomputed = 2 * rows * 2048 * (16 * model.dim + 3 * model.mlp_dim)
    dpo = state + activations + recomputed + 2 * 2 * (layer + widest) + 3 * 4 * MAX_LOGITS
    kv = 2 * 2 * model.num_layers * model.num_kv_heads * model.head_dim / sampling_tensor
    samples = max(1, c.sampling.max_concurrent * sampling_tensor // count)
    prompt = (c.model.max_length - c.responses.max_new_tokens) / c.responses.num_samples  # shared by a prompt's samples
    sampling = 2 * total / sampling_tensor + samples * kv * (prompt + c.responses.max_new_tokens) + 4 * total / count
    fits = max(dpo, sampling) < 0.9 * memory * GIB
    return {
        "name": name,
        "preset": preset,
        "slice": f"{count} x {gpu}",
        "tensor": tensor,
        "sampling_tensor": sampling_tensor,
        "dpo": dpo / GIB,
        "sampling": sampling / GIB,
        "memory": memory,
        "fits": fits,
    }


def _flatten(tree: dict) -> list:
    return [w for x in tree.values() for w in ([x] if is_param_spec(x) else _flatten(x))]


def document(compiled: list[dict], estimated: list[dict]) -> str:
    """The text of docs/fits.md."""
    lines = HEAD.splitlines()
    groups: dict[tuple, dict] = {}
    for row in compiled:
        groups.setdefault((row["name"], row["preset"], row["slice"], row["options"]), {})[row["program"]] = row
    for (name, preset, topology, options), programs in groups.items():
        if "refused" in programs:
            error = programs["refused"]["error"]
            lines.append(f"| {name} ({preset}) | {topology} | | | | | | | refused: {error} | `{options}` |")
            continue
        reshards = [programs[p] for p in ("merge", "reshard") if p in programs]
        programs["reshard"] = max(reshards, key=lambda p: p["peak"], default=None)
        cells = [_cell(programs.get(p)) for p in ("sft", "dpo", "reshard", "prefill", "decode")]
        memory = next(iter(programs.values()))["hbm"] // GIB
        verdict = "FITS" if all(p["fits"] for p in programs.values()) else "DOES NOT FIT"
        options_cell = f"`{options}`" if options else ""
        row_cells = [f"{name} ({preset})", topology, str(memory), *cells, verdict, options_cell]
        lines.append(f"| {' | '.join(row_cells)} |")
    lines += ESTIMATED_HEAD.splitlines()
    for g in estimated:
        verdict = "should fit" if g["fits"] else "does not fit"
        gpus = f"{g['slice']}, tensor {g['tensor']}, sampling_tensor {g['sampling_tensor']}"
        lines.append(f"| {g['name']} | {gpus} | {g['memory']} | {g['dpo']:.1f} | {g['sampling']:.1f} | {verdict} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict | None) -> str:
    if row is None:
        return "-"
    size = f"{row['peak'] / GIB:.1f}"
    return size if row["fits"] else f"({size})"


def _is_of(row: dict, entry: tuple) -> bool:
    """Whether a stored row belongs to an entry of COMPILED."""
    return (row["name"], row["slice"], row["options"]) == (entry[0], entry[2], entry[3])


def main(_: list[str]) -> None:
    """Compiles, estimates and prints; writes with --write."""
    stored = []
    if ROWS_FILE.exists() and _WRITE.value:
        stored = [json.loads(line) for line in ROWS_FILE.read_text().splitlines()]
    for entry in COMPILED:
        if _ROWS.value and not any(part in entry[0] for part in _ROWS.value.split(",")):
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
    estimated = [estimate_gpu(*entry) for entry in ESTIMATED]
    for row in estimated:
        print(json.dumps(row), flush=True)
    if _WRITE.value:
        DOCUMENT.write_text(document(stored, estimated))


if __name__ == "__main__":
    app.run(main)
