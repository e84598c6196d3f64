"""Our side of a comparison: a process that is asked for one run after the other. See side_by_side.py."""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from benchmarks import cases
from benchmarks.side_by_side import serve
from selfreward_jax import config
from selfreward_jax.llm import hf
from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.hf_config import write_config
from selfreward_jax.llm.llama import Llama, LlamaConfig, Params, init_params, param_specs
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import param_shardings
from selfreward_jax.sampling.engine import Engine, Request, SamplingParams
from selfreward_jax.train import dpo, trainer

Run = Callable[[], dict[str, Any]]


class Ids:
    """In place of a chat format: prompts are ids in words, no id ends a sample."""

    stop_ids = ()

    def opening(self, prompt: str) -> list[int]:
        """The ids."""
        return [int(word) for word in prompt.split()]

    def response_text(self, ids: list[int]) -> str:
        """Nothing: it is not read."""
        return ""


def model(shape: str, dtype: str) -> tuple[LlamaConfig, Params]:
    """Random weights of a shape, float32."""
    cfg = LlamaConfig(*cases.SHAPES[shape], tie_embeddings=shape in cases.TIED, dtype=dtype)
    return cfg, jax.jit(lambda key: init_params(key, param_specs(cfg), jnp.float32))(jax.random.key(0))


def save(case: dict[str, Any]) -> Run:
    """Writes the model as a Hugging Face folder."""
    folder = epath.Path(case["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    cfg, params = model(case["shape"], "float32")
    described = write_config(cfg, None, "float32", max_position_embeddings=4096)
    (folder / "config.json").write_text(json.dumps(described))
    hf.save(folder, cfg, params, "float32")
    return lambda: {}


def generate(case: dict[str, Any]) -> Run:
    """Draws `samples` of `new` tokens after each of `prompts` prompts of `length`, of which `shared` are the same."""
    cfg, params = model(case["shape"], case["dtype"])
    params = jax.tree.map(lambda x: x.astype(case["dtype"]), params)
    engine = Engine(cfg, params, Ids(), make_mesh(), max_concurrent=case["rows"], max_length=4096, raw=True)
    ids = cases.prompts(case["shape"], case["prompts"], case["length"], case.get("shared", 0))
    requests = [Request(str(i), " ".join(map(str, x))) for i, x in enumerate(ids)]
    how = SamplingParams(case["samples"], 0.7, 0.9, case["new"])
    turn = iter(range(1 << 30))

    def run() -> dict[str, Any]:
        start = time.perf_counter()
        made = engine.generate(requests, how, jax.random.key(next(turn)))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": sum(len(c.ids) for c in made)}

    return run


def dpo_step(case: dict[str, Any]) -> Run:
    """Steps of DPO with AdamW, and the reference forward of the same pairs if `reference` says so."""
    cfg, params = model(case["shape"], case["dtype"])
    made = []
    for row in cases.pairs(case["shape"], case["pairs"], case["prompt"], case["response"]):
        sides = (Example(row["prompt"] + row[s], _target(row, s)) for s in ("chosen", "rejected"))
        made.append(dpo.Pair(*sides))
    c = config.default_config()
    c.update_from_flattened_dict(
        {"dpo.batch_size": len(made), "dpo.replay_weight": 0.0, "dpo.nll_weight": 0.0, "dpo.epochs": 1e6}
    )
    mesh, net = make_mesh(), Llama(cfg)
    c.optimizer.name = "adamw"
    optimizer = trainer.make_optimizer(c.optimizer)
    shardings = trainer.state_shardings(optimizer, params, param_shardings(param_specs(cfg), mesh), mesh)
    update = trainer.make_update(dpo.loss_fn(net, c.dpo), optimizer, shardings, mesh)
    reference = dpo.reference_logprobs(net, params, made, len(made), mesh)
    _, batch_at = dpo.make_batch_fn(made, reference, [], c.dpo, 0, mesh, cfg)
    state = trainer.TrainState(jnp.int32(0), jax.tree.map(jnp.copy, params), optimizer.init(params))
    held = {"state": jax.device_put(state, shardings)}  # where updates leave it: else the second is compiled anew
    forward = jax.jit(lambda params, batch: dpo.pair_logprobs(net, params, batch))
    arrays = {name: x[0] for name, x in batch_at(0)["arrays"].items()}

    def run() -> dict[str, Any]:
        start = time.perf_counter()
        seen = []
        for step in range(case["steps"]):
            if case["reference"]:
                with jax.set_mesh(mesh):
                    seen.append(forward(params, arrays))
            held["state"], metrics = update(held["state"], batch_at(step), jax.random.key(0), rate=1e-6)
        jax.block_until_ready((held["state"], metrics, seen))
        return {"seconds": (time.perf_counter() - start) / case["steps"], "loss": float(metrics["loss"])}

    return run


def _target(row: dict[str, list[int]], side: str) -> list[bool]:
    return [False] * len(row["prompt"]) + [True] * len(row[side])


def machine(case: dict[str, Any]) -> Run:
    """What this machine can do: float32 and bfloat16 FLOP/s of a matrix product, bytes/s of reading memory."""
    n = 2048 if jax.default_backend() == "cpu" else 16384
    read = jnp.ones(1 << 27 if n == 2048 else 1 << 31, jnp.float32)  # 512 MiB, 8 GiB: more than any cache
    total = jax.jit(jnp.sum)
    product = jax.jit(lambda a: a @ a)
    given = {dtype: jnp.ones((n, n), dtype) for dtype in ("float32", "bfloat16")}

    def timed(f: Any, x: Any) -> float:
        jax.block_until_ready(f(x))
        start = time.perf_counter()
        jax.block_until_ready(f(x))
        return time.perf_counter() - start

    def run() -> dict[str, Any]:
        rates = {f"{dtype}_flops": 2 * n**3 / timed(product, x) for dtype, x in given.items()}
        return {"bytes": read.nbytes / timed(total, read), **rates}

    return run


if __name__ == "__main__":
    serve({f.__name__: f for f in (save, generate, dpo_step, machine)}, {"jax": jax.__version__})
