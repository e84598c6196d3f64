"""How much host memory does loading a Hugging Face folder take, in addition to the weights?

    python -m benchmarks.load [--layers=8 --dim=1024]

Writes a random model, loads it in a new process, and prints a JSON line: bytes of the weights, bytes of the largest
tensor of the folder, and the peak of the process's own memory above what it held before. On a CPU the weights are in
host memory, so the excess is the cost of loading. Pages of the mapped files are counted separately, since the kernel
reclaims them when it needs memory.
"""

import json
import subprocess
import sys
import tempfile
import threading

import jax
import jax.numpy as jnp
from absl import app, flags
from etils import epath

from selfreward_jax.llm import hf
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.hf_config import read_config, write_config
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import param_specs
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import param_shardings

_LAYERS = flags.DEFINE_integer("layers", 8, "Layers.")
_DIM = flags.DEFINE_integer("dim", 1024, "Model dimension.")
_READ = flags.DEFINE_string("read", "", "Loads this folder and prints the peak; the program calls itself with it.")


def resident(kind: str) -> int:
    """Bytes of this process as the kernel counts them: VmHWM is the overall peak, RssAnon excludes mapped files."""
    for line in epath.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {kind}: run this on Linux")


def read(folder: str) -> None:
    """Loads the folder and prints the memory that it took."""
    cfg, _ = read_config(epath.Path(folder))
    shardings = param_shardings(param_specs(cfg), make_mesh())
    jax.block_until_ready(jax.jit(lambda: jnp.zeros((256, 256)) + 1)())  # exclude the memory of the compiler
    before, peaks, done = resident("RssAnon"), [0], threading.Event()

    def sample_memory() -> None:
        while not done.wait(0.001):
            peaks.append(resident("RssAnon"))

    sampler = threading.Thread(target=sample_memory)
    sampler.start()
    params = jax.block_until_ready(hf.load(epath.Path(folder), cfg, shardings))
    done.set()
    sampler.join()
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    largest = max(4 * a * b for a, b in (s for s in hf.expected_tensors(cfg).values() if len(s) == 2))
    excess = max(peaks) - before - size
    figures = {"weights": size, "largest_tensor": largest, "peak": max(peaks) - before, "excess": excess}
    mapped = resident("VmHWM") - max(peaks)
    print(json.dumps({**figures, "excess_in_tensors": round(excess / largest, 2), "mapped_file_pages": mapped}))


def main(argv: list[str]) -> None:
    """Runs one of the two processes."""
    del argv
    if _READ.value:
        read(_READ.value)
    else:
        write_and_read()


def write_and_read() -> None:
    """Writes a random model, and loads it in a new process."""
    D = _DIM.value
    cfg = DecoderConfig(32_000, D, _LAYERS.value, D // 64, D // 128, 64, 4 * D, tie_embeddings=False)
    params = Decoder(cfg).init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    with tempfile.TemporaryDirectory() as folder:
        (epath.Path(folder) / "config.json").write_text(json.dumps(write_config(cfg, None, "float32")))
        hf.save(epath.Path(folder), cfg, params, "float32", shard_bytes=2e8)
        subprocess.run([sys.executable, "-m", "benchmarks.load", f"--read={folder}"], check=True)


if __name__ == "__main__":
    app.run(main)
