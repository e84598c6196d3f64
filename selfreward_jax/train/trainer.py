"""The training state, the jitted update, and the loop that runs it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from selfreward_jax.llm import lora
from selfreward_jax.llm.parameters import MATRICES, MLP_MATRICES, Params
from selfreward_jax.parallel.arrays import put
from selfreward_jax.parallel.preemption import Stopped
from selfreward_jax.parallel.sharding import batch_sharding, replicated
from selfreward_jax.train import checkpoints

Metrics = dict[str, jax.Array]
# (params, microbatch, dropout key) -> (loss, metrics). Losses and metrics of microbatches are summed: each divides by
# totals of the full batch, which are part of the microbatch.
LossFn = Callable[[Params, dict[str, Any], jax.Array], tuple[jax.Array, Metrics]]
Schedule = Callable[[int], float]  # the learning rate of a step


class TrainState(NamedTuple):
    """Everything that determines the rest of a training run, except its settings and the frozen parameters."""

    step: jax.Array
    params: Params
    opt_state: Any


class DivergenceError(RuntimeError):
    """The loss or its gradient is not finite.

    step: the step at which this happened.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def make_schedule(steps: int, peak: float, end: float, warmup: int) -> Schedule:
    """Linear warmup from 0 over `warmup` steps (at most half of `steps`), then cosine decay from `peak` to `end`."""
    warmup = min(warmup, steps // 2)

    def learning_rate(step: int) -> float:
        if step < warmup:
            return peak * step / warmup
        return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2

    return learning_rate


def make_optimizer(settings: Any, max_nonfinite_steps: int = 0) -> optax.GradientTransformation:
    """Gradient clipping, then adamw or muon, with learning rate 1.

    Both optimizers multiply by the learning rate last. The update step does this instead and takes the rate as an
    argument, so one compiled program serves all schedules.

    Args:
      settings: config.optimizer.
      max_nonfinite_steps: up to this many non-finite gradients in a row are skipped, without any change of the state.
    """
    if settings.name == "muon":
        core = optax.contrib.muon(
            1.0,
            weight_decay=settings.weight_decay,
            adam_b1=settings.b1,
            adam_b2=settings.b2,
            adam_weight_decay=settings.weight_decay,
            mu_dtype=settings.moment_dtype,
            muon_weight_dimension_numbers=muon_dimensions,
            consistent_rms=settings.muon_rms,
        )
    else:
        core = optax.adamw(
            1.0, settings.b1, settings.b2, weight_decay=settings.weight_decay, mu_dtype=settings.moment_dtype
        )
    clipped = optax.chain(optax.clip_by_global_norm(settings.grad_clip_norm), core)
    return optax.apply_if_finite(clipped, max_nonfinite_steps) if max_nonfinite_steps else clipped


def muon_dimensions(params: Params) -> Any:
    """The matrix axes of each stacked weight: Muon trains the matrices of the layers, Adam the rest."""

    has_experts = "router" in params["layers"]

    def axes(name: str, weight: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if name not in MATRICES:
            return None
        first_input = 2 if has_experts and name in MLP_MATRICES else 1  # after the axes of layers and of experts
        first_output = first_input + MATRICES[name]
        inputs, outputs = range(first_input, first_output), range(first_output, weight.ndim)
        return optax.contrib.MuonDimensionNumbers(tuple(inputs), tuple(outputs))

    layers = {name: axes(name, weight) for name, weight in params["layers"].items()}
    return {name: layers if name == "layers" else None for name in params}


def state_shardings(
    optimizer: optax.GradientTransformation,
    abstract_params: Params,
    param_shardings: Any,
    mesh: Mesh,
    offload: bool = False,
) -> TrainState:
    """Shardings of the training state: moments are sharded like their parameters, everything else is replicated.

    A leaf of the optimizer state belongs to a parameter if its path ends with the parameter's path.

    Args:
      optimizer: from `make_optimizer`.
      abstract_params: shapes and dtypes of the parameters.
      param_shardings: their shardings.
      mesh: the training mesh.
      offload: keep the moments in host memory.
    """
    by_path = {tuple(map(str, path)): s for path, s in jax.tree_util.tree_leaves_with_path(param_shardings)}

    def sharding_of(path: Any, leaf: Any) -> Any:
        names = tuple(map(str, path))
        suffixes = (names[i:] for i in range(len(names)))
        sharding = next((by_path[s] for s in suffixes if s in by_path and leaf.ndim), None)
        if sharding is None:
            return replicated(mesh)
        return sharding.with_memory_kind("pinned_host") if offload else sharding

    opt_state = jax.eval_shape(optimizer.init, abstract_params)
    return TrainState(replicated(mesh), param_shardings, jax.tree_util.tree_map_with_path(sharding_of, opt_state))


# (state, sharded batch, dropout key, frozen parameters or None, learning rate) -> (next state, metrics)
Update = Callable[..., tuple[TrainState, Metrics]]


# XLA for TPU turns products of sharded weights into rings of small products. For 8B on v5p:2x2x2 a step then moves
# twice the bytes, and by the compiler's own estimate takes 1.33 times the cycles. A threshold that nothing reaches
# forbids it.
COMPILER_OPTIONS = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}}


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Options of `jax.jit` for programs with the weights as they are sharded in training."""
    return COMPILER_OPTIONS.get(mesh.devices.flat[0].platform)


def make_update(loss_fn: LossFn, optimizer: optax.GradientTransformation, shardings: TrainState, mesh: Mesh) -> Update:
    """The jitted update step: (state, batch, key, frozen, rate) -> (next state, metrics).

    state: donated.
    batch: "arrays" [A, B, ...] for A microbatches, and "totals", scalars that all microbatches share.
    key: dropout key of the run; the step is folded into it.
    frozen: parameters that are not trained, or None.
    rate: the learning rate.
    metrics: `loss`, `grad_norm` and the metrics of `loss_fn`; if the optimizer may skip steps also `skipped`, the
      number of steps skipped in a row.
    """

    options = compiler_options(mesh)

    @partial(jax.jit, donate_argnums=0, out_shardings=(shardings, replicated(mesh)), compiler_options=options)
    def update(
        state: TrainState, batch: dict[str, Any], key_data: jax.Array, frozen: Params | None, rate: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), state.step)
        full_loss = lambda trained, *rest: loss_fn(lora.combine(frozen, trained), *rest)  # noqa: E731
        grad_fn = jax.value_and_grad(full_loss, has_aux=True)

        def microbatch_grads(index: Any, arrays: dict[str, Any]) -> tuple[Params, Metrics]:
            inputs = arrays | batch["totals"]
            (loss, metrics), grads = grad_fn(state.params, inputs, jax.random.fold_in(key, index))
            # Summed over rows into the shards of the weights, not into full gradients on every device.
            grads = jax.lax.with_sharding_constraint(grads, shardings.params)
            return grads, metrics | {"loss": loss}

        arrays = batch["arrays"]
        count = jax.tree.leaves(arrays)[0].shape[0]
        sums = microbatch_grads(0, jax.tree.map(lambda x: x[0], arrays))
        if count > 1:
            rest = (jnp.arange(1, count), jax.tree.map(lambda x: x[1:], arrays))
            add = lambda sums, xs: (jax.tree.map(jnp.add, sums, microbatch_grads(*xs)), None)  # noqa: E731
            sums, _ = jax.lax.scan(add, sums, rest)
        grads, metrics = sums
        # The moments may be in host memory; they are in device memory only for the update.
        on_device = jax.tree.map(lambda s: s.with_memory_kind(None), shardings.opt_state)
        updates, opt_state = optimizer.update(grads, jax.device_put(state.opt_state, on_device), state.params)
        params = optax.apply_updates(state.params, optax.tree.scale(rate, updates))
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        if isinstance(opt_state, optax.ApplyIfFiniteState):
            metrics["skipped"] = opt_state.notfinite_count
        return TrainState(state.step + 1, params, opt_state), metrics

    def update_on_mesh(
        state: TrainState, batch: dict[str, Any], key: jax.Array, frozen: Params | None = None, rate: float = 1.0
    ) -> tuple[TrainState, Metrics]:
        key_data = np.asarray(jax.random.key_data(key))  # a numpy array may go to the devices of any process
        with jax.set_mesh(mesh):
            return update(state, batch, key_data, frozen, np.float32(rate))

    update_on_mesh.jitted = update  # for callers that lower it
    return update_on_mesh


def shard_batch(batch: dict[str, Any], mesh: Mesh, grad_accum_steps: int) -> dict[str, Any]:
    """Splits all "arrays" [B, ...] into [A, B / A, ...] for A microbatches and shards their rows over the mesh."""

    def arrays(x: np.ndarray) -> jax.Array:
        x = x.reshape(grad_accum_steps, x.shape[0] // grad_accum_steps, *x.shape[1:])
        return put(x, batch_sharding(mesh, x.ndim, axis=1))

    return {
        "arrays": jax.tree.map(arrays, batch["arrays"]),
        "totals": {name: put(x, replicated(mesh)) for name, x in batch["totals"].items()},
    }


class FitOptions(NamedTuple):
    """When `fit` saves, and what it calls.

    path: directory of the saved states.
    checkpoint_every: steps between saved states; 0 saves none.
    on_step: called with the number and the metrics of each step, one step late, so that the device never waits.
    eval_fn: called with the number of completed steps and the parameters, every `eval_every` steps and at the end.
      Training ends if it returns False.
    should_stop: called after every step. If it returns True, the state is saved and `fit` raises Stopped.
    max_nonfinite_steps: non-finite gradients in a row that the optimizer skips.
    owner: the digest of the step that trains, for the saved states.
    """

    path: epath.Path
    checkpoint_every: int
    on_step: Callable[[int, dict[str, float]], None]
    eval_fn: Callable[[int, Params], bool] | None = None
    eval_every: int = 0
    should_stop: Callable[[], bool] = lambda: False
    max_nonfinite_steps: int = 0
    owner: str = ""


def fit(
    state: TrainState,
    update: Update,
    batch_at: Callable[[int], dict[str, Any]],
    steps: int,
    lr_schedule: Schedule,
    key: jax.Array,
    options: FitOptions,
    frozen: Params | None = None,
) -> TrainState:
    """Runs steps state.step ... steps - 1, or fewer if `options.eval_fn` ends the training.

    Args:
      state: the initial state.
      update: from `make_update`.
      batch_at: the sharded batch of a step; a pure function.
      steps: the number of steps of the whole run.
      lr_schedule: the learning rate of a step.
      key: dropout key of the run; the update folds the step into it.
      options: when to save, and what to call.
      frozen: parameters that are not trained.

    Raises:
      DivergenceError: a loss or gradient was not finite; the message names the step.
      Stopped: `options.should_stop` returned True, or `options.eval_fn` raised it; the state is saved.
    """
    pending: tuple[int, Metrics] | None = None

    def flush() -> None:
        nonlocal pending
        if pending is not None:
            step, metrics = pending
            options.on_step(step, _check_finite(step, metrics, options.max_nonfinite_steps))
        pending = None

    step = int(state.step)
    while True:
        # First of all, so that a run that was killed during an evaluation repeats it.
        if options.eval_fn and step and (step % options.eval_every == 0 or step == steps):
            flush()
            try:
                proceed = options.eval_fn(step, state.params)
            except Stopped:  # during the evaluation; the next start repeats it from here
                checkpoints.save_step(options.path, step, state, options.owner)
                raise
            if not proceed:
                return state
        if step >= steps:
            flush()
            return state
        state, metrics = update(state, batch_at(step), key, frozen, lr_schedule(step))
        flush()
        pending, step = (step, metrics), step + 1
        stop = options.should_stop()
        every = options.checkpoint_every
        if stop or (every and step % every == 0 and step < steps):
            flush()
            checkpoints.save_step(options.path, step, state, options.owner)
        if stop:
            raise Stopped


def _check_finite(step: int, metrics: Metrics, max_nonfinite_steps: int) -> dict[str, float]:
    """The metrics as numbers. Raises DivergenceError at a non-finite step that the optimizer does not skip."""
    values = {name: float(value) for name, value in metrics.items()}
    skipped = 0 < values.get("skipped", 0) <= max_nonfinite_steps
    for name in ("loss", "grad_norm"):  # a finite loss can have a gradient that is not
        if not math.isfinite(values[name]) and not skipped:
            raise DivergenceError(f"{name} is {values[name]} at step {step}", step)
    return values
