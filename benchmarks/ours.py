"""The worker process of our side of a comparison. See side_by_side.py."""

import dataclasses
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
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.hf_config import parse_config, read_config, write_config
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params, init_params, param_specs
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import param_shardings
from selfreward_jax.sampling.engine import Engine, Request, SamplingParams
from selfreward_jax.train import dpo, sft, trainer

Run = Callable[[], dict[str, Any]]


class TokenIdChat:
    """Replaces a chat format: prompts are ids written as words, and no id stops sampling."""

    stop_ids = ()

    def encode_prefix(self, prompt: str) -> list[int]:
        """The ids."""
        return [int(word) for word in prompt.split()]

    def response_text(self, ids: list[int]) -> str:
        """Empty: the text is not used."""
        return ""


def model(shape: str, dtype: str, remat: str = "none") -> tuple[DecoderConfig, Params]:
    """Random weights of a shape, float32."""
    if shape in cases.GEMMA3:
        cfg = parse_config(cases.gemma3_config(shape))
    else:
        cfg = DecoderConfig(*cases.SHAPES[shape], tie_embeddings=shape in cases.TIED)
    cfg = dataclasses.replace(cfg, dtype=dtype, remat=remat)
    return cfg, jax.jit(lambda key: init_params(key, param_specs(cfg), jnp.float32))(jax.random.key(0))


def save(case: dict[str, Any]) -> Run:
    """Writes the model as a Hugging Face folder."""
    folder = epath.Path(case["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    cfg, params = model(case["shape"], "float32")
    described = cases.gemma3_config(case["shape"]) if case["shape"] in cases.GEMMA3 else None
    hf_config = write_config(cfg, described, "float32", max_position_embeddings=4096)
    (folder / "config.json").write_text(json.dumps(hf_config))
    hf.save(folder, cfg, params, "float32")
    return lambda: {}


def load(case: dict[str, Any]) -> Run:
    """Reads the folder into the memory of the device, in float32."""
    folder = epath.Path(case["folder"])
    cfg, _ = read_config(folder)
    params = jax.block_until_ready(hf.load(folder, cfg, param_shardings(param_specs(cfg), make_mesh())))
    return lambda: {"bytes": sum(x.nbytes for x in jax.tree.leaves(params))}


def generate(case: dict[str, Any]) -> Run:
    """Samples `samples` times `new` tokens for each of `prompts` prompts of `length` ids, which share `shared` ids."""
    cfg, params = model(case["shape"], case["dtype"])
    params = jax.tree.map(lambda x: x.astype(case["dtype"]), params)
    engine = Engine(cfg, params, TokenIdChat(), make_mesh(), max_concurrent=case["rows"], max_length=4096, raw=True)
    ids = cases.prompts(case["shape"], case["prompts"], case["length"], case.get("shared", 0))
    requests = [Request(str(i), " ".join(map(str, x))) for i, x in enumerate(ids)]
    sampling_params = SamplingParams(case["samples"], 0.7, 0.9, case["new"])
    seeds = iter(range(1 << 30))

    def run() -> dict[str, Any]:
        start = time.perf_counter()
        completions = engine.generate(requests, sampling_params, jax.random.key(next(seeds)))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": sum(len(c.ids) for c in completions)}

    return run


def dpo_step(case: dict[str, Any]) -> Run:
    """DPO steps with AdamW; with `reference`, each step also runs the reference model on the same pairs."""
    cfg, params = model(case["shape"], case["dtype"], case["remat"])
    pairs = []
    for row in cases.pairs(case["shape"], case["pairs"], case["prompt"], case["response"]):
        sides = (Example(row["prompt"] + row[s], _target(row, s)) for s in ("chosen", "rejected"))
        pairs.append(dpo.Pair(*sides))
    c = config.default_config()
    c.update_from_flattened_dict(
        {"dpo.batch_size": len(pairs), "dpo.replay_weight": 0.0, "dpo.nll_weight": 0.0, "dpo.epochs": 1e6}
    )
    mesh, net = make_mesh(), Decoder(cfg)
    update, carry = _training(c, cfg, params, mesh, dpo.loss_fn(net, c.dpo))
    reference = dpo.reference_logprobs(net, params, pairs, len(pairs), mesh)
    _, batch_at = dpo.make_batch_fn(pairs, reference, [], c.dpo, 0, mesh, cfg)
    forward = jax.jit(lambda params, batch: dpo.pair_logprobs(net, params, batch))
    arrays = {name: x[0] for name, x in batch_at(0)["arrays"].items()}

    def run() -> dict[str, Any]:
        start = time.perf_counter()
        logprobs = []
        for step in range(case["steps"]):
            if case["reference"]:
                with jax.set_mesh(mesh):
                    logprobs.append(forward(params, arrays))
            carry["state"], metrics = update(carry["state"], batch_at(step), jax.random.key(0), rate=1e-6)
        jax.block_until_ready((carry["state"], metrics, logprobs))
        return {"seconds": (time.perf_counter() - start) / case["steps"], "loss": float(metrics["loss"])}

    return run


def sft_step(case: dict[str, Any]) -> Run:
    """SFT steps with AdamW on rows of prompt and response, of which the responses are targets."""
    cfg, params = model(case["shape"], case["dtype"], case["remat"])
    rows = cases.pairs(case["shape"], case["rows"], case["prompt"], case["response"])
    examples = [Example(row["prompt"] + row["chosen"], _target(row, "chosen")) for row in rows]
    c = config.default_config()
    c.sft.batch_size, c.sft.seq_len, c.sft.epochs = case["rows"], case["prompt"] + case["response"], 1.0
    mesh = make_mesh()
    update, carry = _training(c, cfg, params, mesh, sft.loss_fn(Decoder(cfg)))
    _, batch_at = sft.make_batch_fn(examples, c.sft, 0, mesh, cfg)

    def run() -> dict[str, Any]:
        start = time.perf_counter()
        for _ in range(case["steps"]):
            carry["state"], metrics = update(carry["state"], batch_at(0), jax.random.key(0), rate=1e-6)
        jax.block_until_ready((carry["state"], metrics))
        return {"seconds": (time.perf_counter() - start) / case["steps"], "loss": float(metrics["loss"])}

    return run


def _training(c: Any, cfg: DecoderConfig, params: Params, mesh: Any, loss: Any) -> tuple[Any, dict[str, Any]]:
    """The update of a loss with AdamW, and its state, sharded as updates return it: else the second step recompiles."""
    c.optimizer.name = "adamw"
    optimizer = trainer.make_optimizer(c.optimizer)
    shardings = trainer.state_shardings(optimizer, params, param_shardings(param_specs(cfg), mesh), mesh)
    state = trainer.TrainState(jnp.int32(0), jax.tree.map(jnp.copy, params), optimizer.init(params))
    return trainer.make_update(loss, optimizer, shardings, mesh), {"state": jax.device_put(state, shardings)}


def _target(row: dict[str, list[int]], side: str) -> list[bool]:
    return [False] * len(row["prompt"]) + [True] * len(row[side])


def machine(case: dict[str, Any]) -> Run:
    """The machine's rates: float32 and bfloat16 FLOP/s of a matrix product, bytes/s of reading memory."""
    n = 2048 if jax.default_backend() == "cpu" else 16384
    array = jnp.ones(1 << 27 if n == 2048 else 1 << 31, jnp.float32)  # 512 MiB, 8 GiB: more than any cache
    total = jax.jit(jnp.sum)
    product = jax.jit(lambda a: a @ a)
    matrices = {dtype: jnp.ones((n, n), dtype) for dtype in ("float32", "bfloat16")}

    def timed(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
        jax.block_until_ready(f(x))
        start = time.perf_counter()
        jax.block_until_ready(f(x))
        return time.perf_counter() - start

    def run() -> dict[str, Any]:
        rates = {f"{dtype}_flops": 2 * n**3 / timed(product, x) for dtype, x in matrices.items()}
        return {"bytes": array.nbytes / timed(total, array), **rates}

    return run


if __name__ == "__main__":
    serve({f.__name__: f for f in (save, load, generate, dpo_step, sft_step, machine)}, {"jax": jax.__version__})
