"""Which scale fits which machine? Makes docs/fits.md.

    python -m benchmarks.fit_table [--rows=8b,70b] [--only=prefill,decode] [--write [--missing]]

Each row of TPU figures is `python -m selfreward_jax fits` with the options shown: the run's own programs, compiled for
the slice. Rows for GPUs are reckoned, not compiled: state, activations, the widest layer gathered, a chunk of logits.
Prints JSON lines; with --write, those already in benchmarks/fit_table.jsonl are kept and the document is made of all.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

from absl import app, flags

from selfreward_jax import config
from selfreward_jax.config import validate
from selfreward_jax.llm.llama import is_param_spec, param_specs, parameter_count
from selfreward_jax.memory.models import KNOWN_MODELS
from selfreward_jax.train.logprobs import MAX_LOGITS

_ROWS = flags.DEFINE_string("rows", "", "Only the rows whose name holds one of these, separated by commas.")
_MISSING = flags.DEFINE_bool("missing", False, "With --write: only the rows that are not kept yet.")
_ONLY = flags.DEFINE_list("only", [], "Compile these programs alone; those of a row that are not named are kept.")
_WRITE = flags.DEFINE_bool("write", False, "Keep the figures and make docs/fits.md.")
GIB = 1 << 30
ROOT = Path(__file__).parents[1]
KEPT, TABLE = ROOT / "benchmarks/fit_table.jsonl", ROOT / "docs/fits.md"

_EIGHT = "--config.sampling.max_concurrent=64"
# Name, scale, slice, settings. DPO at 2,048 tokens a side, unless said otherwise.
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
    ("8b", "llama3_8b", "v5e:4x4", f"--config.parallel.fsdp=16 --config.parallel.sampling_tensor=8 {_EIGHT}"),
    ("8b", "llama3_8b", "v5e:2x4", f"--config.parallel.fsdp=8 --config.parallel.sampling_tensor=8 {_EIGHT}"),
    ("8b", "llama3_8b", "v5p:2x2x2", "--config.parallel.fsdp=8 --config.parallel.sampling_tensor=2"),
    ("8b", "llama3_8b", "v6e:4x4", f"--config.parallel.fsdp=16 --config.parallel.sampling_tensor=4 {_EIGHT}"),
    ("8b", "llama3_8b", "v4:2x2x4", f"--config.parallel.fsdp=16 --config.parallel.sampling_tensor=4 {_EIGHT}"),
    ("8b qwen3", "qwen3_8b", "v5e:4x4", f"--config.parallel.fsdp=16 --config.parallel.sampling_tensor=8 {_EIGHT}"),
    (
        "8b lora",
        "llama3_8b",
        "v5e:2x2",
        "--config.lora.rank=16 --config.parallel.fsdp=4 --config.parallel.sampling_tensor=4 --config.sampling.max_concurrent=16 "
        "--config.sft.grad_accum_steps=4 --config.dpo.grad_accum_steps=4",
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
# Name, scale, GPU, how many, GiB of each, devices that share each matrix product in training, and while sampling.
RECKONED = [
    ("135m", "smollm2_135m", "H100", 1, 80, 1, 1),
    ("1b", "tinyllama", "H100", 1, 80, 1, 1),
    ("8b", "llama3_8b", "H100", 8, 80, 1, 1),
    ("8b", "llama3_8b", "H200", 8, 141, 1, 1),
    ("70b", "llama2_70b", "H100", 64, 80, 4, 8),
    ("70b", "llama2_70b", "H200", 8, 141, 1, 8),
    ("70b", "llama2_70b", "H200", 32, 141, 4, 8),
]


HEAD = """# What fits where

Made by `python -m benchmarks.fit_table --write`. GiB on a chip: the peak of each program of a run, compiled by
`python -m selfreward_jax fits` for the slice, without a TPU (by libtpu's own compiler). It proves that the programs
compile and fit, not how fast they are. DPO at 2,048 tokens a side for pretrained models. A figure in brackets does not
fit; where the compiler gave up early, it is what it had asked for by then. Reshard is the move of the float32 weights
into the layout of sampling, or the merge of adapters before it, whichever takes more. Prefill and decode are the
largest of all stages, each prompt as long as can be.

| model | slice | memory | SFT | DPO | reshard | prefill | decode | | settings |
| --- | --- | --: | --: | --: | --: | --: | --: | --- | --- |
"""
RECKONED_HEAD = """
## GPUs, reckoned

By arithmetic alone (the formulas are in the script): all GPUs share each weight, sampling in bfloat16.

| model | GPUs | memory | DPO | sampling | |
| --- | --- | --: | --: | --: | --- |
"""


def compiled(name: str, scale: str, topology: str, options: str, only: list[str]) -> list[dict]:
    """The rows of `fits` for one slice, of the programs in `only` or of all."""
    command = [sys.executable, "-m", "selfreward_jax", "fits", f"--config=configs/iter3.py:{scale}", "--json"]
    command += [f"--topology={topology}", *options.split()]
    command += [] if scale in ("tiny", "micro", "scratch") else ["--tokens=2048"]
    command += [f"--only={','.join(only)}"] if only else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 2 or not rows:
        rows = [{"program": "refused", "fits": False, "said": (done.stderr.strip() or "?").splitlines()[-1]}]
    return [{"name": name, "scale": scale, "slice": topology, "options": options, **row} for row in rows]


def reckoned(name: str, scale: str, gpu: str, count: int, memory: int, tensor: int, sampling_tensor: int) -> dict:
    """What DPO and sampling take on each of `count` GPUs, by arithmetic: all of them share each weight."""
    c = config.get_config(scale)
    model = KNOWN_MODELS[c.model.init]
    c.data.ift = c.data.eft = "any"
    validate.validate(c, count // tensor)
    total, rows = parameter_count(param_specs(model)), 2 * c.dpo.batch_size * tensor // count
    layer = parameter_count(param_specs(model)["layers"]) // model.num_layers
    widest = max(
        math.prod(w.shape) for w in _flat(param_specs(model))
    )  # a stack of layers is gathered a layer at a time
    widest = max(widest // model.num_layers, model.vocab_size * model.dim)
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
    figures = {"dpo": dpo / GIB, "sampling": sampling / GIB, "memory": memory, "fits": fits}
    return {
        "name": name,
        "scale": scale,
        "slice": f"{count} x {gpu}",
        "tensor": tensor,
        "sample_tensor": sampling_tensor,
        **figures,
    }


def _flat(tree: dict) -> list:
    return [w for x in tree.values() for w in ([x] if is_param_spec(x) else _flat(x))]


def document(kept: list[dict], gpus: list[dict]) -> str:
    """The text of docs/fits.md."""
    lines = HEAD.splitlines()
    groups: dict[tuple, dict] = {}
    for row in kept:
        groups.setdefault((row["name"], row["scale"], row["slice"], row["options"]), {})[row["program"]] = row
    for (name, scale, where, options), programs in groups.items():
        shown = f"`{options}`" if options else ""
        if "refused" in programs:
            lines.append(
                f"| {name} ({scale}) | {where} | | | | | | | refused: {programs['refused']['said']} | `{options}` |"
            )
            continue
        moved = [programs[p] for p in ("merge", "reshard") if p in programs]
        programs["reshard"] = max(moved, key=lambda p: p["peak"], default=None)
        cells = [_cell(programs.get(p)) for p in ("sft", "dpo", "reshard", "prefill", "decode")]
        memory = next(iter(programs.values()))["hbm"] // GIB
        verdict = "FITS" if all(p["fits"] for p in programs.values()) else "DOES NOT FIT"
        lines.append(f"| {name} ({scale}) | {where} | {memory} | {' | '.join(cells)} | {verdict} | {shown} |")
    lines += RECKONED_HEAD.splitlines()
    for g in gpus:
        verdict = "should fit" if g["fits"] else "does not fit"
        where = f"{g['slice']}, tensor {g['tensor']}, sample_tensor {g['sample_tensor']}"
        lines.append(f"| {g['name']} | {where} | {g['memory']} | {g['dpo']:.1f} | {g['sampling']:.1f} | {verdict} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict | None) -> str:
    if row is None:
        return "-"
    size = f"{row['peak'] / GIB:.1f}"
    return size if row["fits"] else f"({size})"


def _same(kept: dict, made: tuple) -> bool:
    return (kept["name"], kept["slice"], kept["options"]) == (made[0], made[2], made[3])


def main(_: list[str]) -> None:
    """Compiles, reckons, prints; writes if asked to."""
    kept = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() and _WRITE.value else []
    for made in COMPILED:
        if _ROWS.value and not any(part in made[0] for part in _ROWS.value.split(",")):
            continue
        if _MISSING.value and any(_same(k, made) for k in kept):
            continue
        rows = compiled(*made, _ONLY.value)
        for row in rows:
            print(json.dumps(row), flush=True)
        kept = [k for k in kept if not (_same(k, made) and (not _ONLY.value or k["program"] in _ONLY.value))] + rows
        if _WRITE.value:
            order = [(name, topology, options) for name, _, topology, options in COMPILED]
            kept = [k for k in kept if (k["name"], k["slice"], k["options"]) in order]
            kept.sort(key=lambda k: order.index((k["name"], k["slice"], k["options"])))
            KEPT.write_text("".join(json.dumps(k) + "\n" for k in kept))
    gpus = [reckoned(*r) for r in RECKONED]
    for g in gpus:
        print(json.dumps(g), flush=True)
    if _WRITE.value:
        TABLE.write_text(document(kept, gpus))


if __name__ == "__main__":
    app.run(main)
