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
from selfreward_jax.llm.llama import MATRICES, Params
from selfreward_jax.parallel.arrays import put
from selfreward_jax.parallel.preemption import Stopped
from selfreward_jax.parallel.sharding import batch_sharding, replicated
from selfreward_jax.train import checkpoints

Metrics = dict[str, jax.Array]
# (params, microbatch, dropout key) -> (loss, metrics). Losses and metrics of microbatches add up: each divides
# by totals of the whole batch, which the batch carries.
LossFn = Callable[[Params, dict[str, Any], jax.Array], tuple[jax.Array, Metrics]]
Schedule = Callable[[int], float]  # the learning rate of a step


class TrainState(NamedTuple):
    """Everything that decides the future of a training run, apart from its configuration and what it leaves frozen."""

    step: jax.Array
    params: Params
    opt_state: Any


class DivergenceError(RuntimeError):
    """The loss or its gradient is no longer a finite number.

    step: where.
    """

    def __init__(self, said: str, step: int) -> None:
        super().__init__(said)
        self.step = step


def make_schedule(steps: int, peak: float, end: float, warmup: int) -> Schedule:
    """Linear warm-up from 0 over `warmup` steps (at most half of all), then a cosine from `peak` to `end`."""
    warmup = min(warmup, steps // 2)

    def rate(step: int) -> float:
        if step < warmup:
            return peak * step / warmup
        return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2

    return rate


def make_optimizer(settings: Any, max_nonfinite_steps: int = 0) -> optax.GradientTransformation:
    """Gradient clipping and the optimiser that `settings` (config.optimizer) names, adamw or muon, at rate 1:
    both multiply by the rate last, and the update does it, to which it is an argument, so one program serves all
    schedules. Up to `skip` gradients in a row that are not finite change nothing."""
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
    """Which axes of each stacked weight are its matrix: Muon for the layers' matrices, Adam for the rest."""

    def axes(name: str, weight: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if name not in MATRICES:
            return None
        cut = 1 + MATRICES[name]  # behind the layers and the inputs
        return optax.contrib.MuonDimensionNumbers(tuple(range(1, cut)), tuple(range(cut, weight.ndim)))

    layers = {name: axes(name, weight) for name, weight in params["layers"].items()}
    return {name: layers if name == "layers" else None for name in params}


def state_shardings(
    optimizer: optax.GradientTransformation, params: Params, like: Any, mesh: Mesh, offload: bool = False
) -> TrainState:
    """Shardings of the state: moments lie as their parameters do (`like`), everything else on every device.

    A leaf of the optimiser's state belongs to a parameter if its path ends in the parameter's path. With `offload`
    the moments lie in the host's memory.
    """
    paths = {tuple(map(str, path)): s for path, s in jax.tree_util.tree_leaves_with_path(like)}

    def one(path: Any, leaf: Any) -> Any:
        names = tuple(map(str, path))
        tails = (names[i:] for i in range(len(names)))
        found = next((paths[t] for t in tails if t in paths and leaf.ndim), None)
        if found is None:
            return replicated(mesh)
        return found.with_memory_kind("pinned_host") if offload else found

    opt_state = jax.eval_shape(optimizer.init, params)
    return TrainState(replicated(mesh), like, jax.tree_util.tree_map_with_path(one, opt_state))


# (state, batch, dropout key, frozen parameters or None, learning rate) -> (next state, metrics)
Update = Callable[..., tuple[TrainState, Metrics]]


def make_update(loss_fn: LossFn, optimizer: optax.GradientTransformation, shardings: TrainState, mesh: Mesh) -> Update:
    """The jitted update step.

    It takes the state (donated), a batch whose arrays are [A, B, ...] for A microbatches (scalars alike for all of
    them), the run's dropout key, into which it folds the step, the parameters that stay as they are, if any, and what
    the optimiser's updates are multiplied by; it returns the next state and the metrics, which hold `loss`,
    `grad_norm`, what `loss_fn` reports and, where steps may be left out, how many in a row were: `skipped`.
    """

    @partial(jax.jit, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    def update(
        state: TrainState, batch: dict[str, Any], key_data: jax.Array, frozen: Params | None, rate: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), state.step)
        whole_loss = lambda trained, *rest: loss_fn(lora.combine(frozen, trained), *rest)  # noqa: E731
        grad_fn = jax.value_and_grad(whole_loss, has_aux=True)

        def micro(index: Any, arrays: dict[str, Any]) -> tuple[Params, Metrics]:
            inputs = arrays | batch["totals"]
            (loss, metrics), grads = grad_fn(state.params, inputs, jax.random.fold_in(key, index))
            # Summed over rows where the weights lie, not on every device.
            grads = jax.lax.with_sharding_constraint(grads, shardings.params)
            return grads, metrics | {"loss": loss}

        arrays = batch["arrays"]
        count = jax.tree.leaves(arrays)[0].shape[0]
        total = micro(0, jax.tree.map(lambda x: x[0], arrays))
        if count > 1:
            rest = (jnp.arange(1, count), jax.tree.map(lambda x: x[1:], arrays))
            total, _ = jax.lax.scan(lambda sums, one: (jax.tree.map(jnp.add, sums, micro(*one)), None), total, rest)
        grads, metrics = total
        # From the host's memory, where they may lie, for as long as they are used.
        near = jax.tree.map(lambda s: s.with_memory_kind(None), shardings.opt_state)
        updates, opt_state = optimizer.update(grads, jax.device_put(state.opt_state, near), state.params)
        params = optax.apply_updates(state.params, optax.tree.scale(rate, updates))
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        if isinstance(opt_state, optax.ApplyIfFiniteState):
            metrics["skipped"] = opt_state.notfinite_count
        return TrainState(state.step + 1, params, opt_state), metrics

    def update_on_mesh(
        state: TrainState, batch: dict[str, Any], key: jax.Array, frozen: Params | None = None, rate: float = 1.0
    ) -> tuple[TrainState, Metrics]:
        key_data = np.asarray(jax.random.key_data(key))  # plain numbers may go to the devices of any process
        with jax.set_mesh(mesh):
            return update(state, batch, key_data, frozen, np.float32(rate))

    update_on_mesh.jitted = update  # for those who lower it
    return update_on_mesh


def shard_batch(batch: dict[str, Any], mesh: Mesh, grad_accum_steps: int) -> dict[str, Any]:
    """Splits each array [B, ...] into [A, B / A, ...] and puts it on the mesh, rows spread over devices."""

    def arrays(x: np.ndarray) -> jax.Array:
        x = x.reshape(grad_accum_steps, x.shape[0] // grad_accum_steps, *x.shape[1:])
        return put(x, batch_sharding(mesh, x.ndim, axis=1))

    return {
        "arrays": {name: arrays(x) for name, x in batch["arrays"].items()},
        "totals": {name: put(x, replicated(mesh)) for name, x in batch["totals"].items()},
    }


def fit(
    state: TrainState,
    update: Update,
    batch_at: Callable[[int], dict[str, Any]],
    steps: int,
    lr_schedule: Schedule,
    key: jax.Array,
    *,
    checkpoint_every: int,
    path: epath.Path,
    on_step: Callable[[int, dict[str, float]], None],
    frozen: Params | None = None,
    eval_fn: Callable[[int, Params], bool] | None = None,
    eval_every: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    max_nonfinite_steps: int = 0,
) -> TrainState:
    """Runs steps state.step ... steps - 1, or fewer if `watch` says so.

    Args:
      state: where to start.
      update: from `make_update`.
      batch_at: the placed batch of a step; a pure function.
      steps: the number of steps of the whole run.
      rate: the learning rate of a step.
      key: dropout key of the run; the update folds the step into it.
      checkpoint_every: steps between saved states; 0 saves none.
      path: where states are saved.
      frozen: parameters that stay as they are.
      report: called with each step's number and metrics, one step late, so that the device never waits.
      watch: called with the number of steps done and the parameters, every `watch_every` steps and at the end; where
        it returns False, training ends.
      halt: asked after every step; where it returns True the state is saved.
      skip: steps in a row that the optimiser leaves out because their gradient is not finite.

    Raises:
      Diverged: a loss was not finite; the message names the step.
      Stopped: `halt` said so, or `watch` was asked to stop; the state is saved.
    """
    pending: tuple[int, Metrics] | None = None

    def flush() -> None:
        if pending is not None:
            step, metrics = pending
            values = {name: float(value) for name, value in metrics.items()}
            for name in ("loss", "grad_norm"):  # a finite loss can have a gradient that is not
                if not math.isfinite(values[name]) and not 0 < values.get("skipped", 0) <= max_nonfinite_steps:
                    raise DivergenceError(f"{name} is {values[name]} at step {step}", step)
            on_step(step, values)

    step = int(state.step)
    while True:
        # Before anything else: a run that was killed while it looked looks again.
        if eval_fn and step and (step % eval_every == 0 or step == steps):
            flush()
            pending = None
            try:
                goes_on = eval_fn(step, state.params)
            except Stopped:  # it was asked to stop while it looked, and looks again from here
                checkpoints.save_step(path, step, state)
                raise
            if not goes_on:
                return state
        if step >= steps:
            flush()
            return state
        state, metrics = update(state, batch_at(step), key, frozen, lr_schedule(step))
        flush()
        pending, step = (step, metrics), step + 1
        halted = should_stop()
        if halted or (checkpoint_every and step % checkpoint_every == 0 and step < steps):
            flush()
            pending = None
            checkpoints.save_step(path, step, state)
        if halted:
            raise Stopped
