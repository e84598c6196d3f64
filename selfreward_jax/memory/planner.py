"""Settings from the machine: a 0 in the settings below becomes a number that fits the devices.

    parallel.replicas, parallel.fsdp, parallel.tensor, parallel.sampling_tensor,
    sft.batch_size, dpo.batch_size, dpo.replay_batch_size, sft.grad_accum_steps, dpo.grad_accum_steps,
    sampling.max_concurrent, prompts.batch_size

A batch has 16 rows, as in the paper, or the next number that all devices can share. What costs least comes first. All
devices share the rows of a batch. Where that is too much, they share the weights too
(fsdp), then batches are split (grad_accum_steps), then matrix products are shared (tensor). Sampling takes the mesh and
the places that decode most tokens in a second. New prompts are written in batches that fill the places many times.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax import storage
from selfreward_jax.config import ConfigError
from selfreward_jax.config.diff import RUNTIME_FIELDS
from selfreward_jax.config.validate import validate
from selfreward_jax.llm import hub
from selfreward_jax.llm.hf_config import read_config
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import param_specs
from selfreward_jax.memory.estimate import MeshShape, is_divisible, sampling_bytes, training_bytes, weight_bytes
from selfreward_jax.memory.machines import Machine, this_machine
from selfreward_jax.memory.models import known_config
from selfreward_jax.parallel.hardware import Hardware
from selfreward_jax.parallel.sharding import round_up
from selfreward_jax.runs.models import build_model_config
from selfreward_jax.runs.run import CONFIG_FILE
from selfreward_jax.runs.workspace import Workspace

MARGIN = 1.25  # the lowest estimate is .80 of what the compiler needs
USABLE = 0.97  # of the memory; the rest is the system's
MAX_ROWS = 256  # places of one group of devices that samples: more rows no longer hide the reading of the weights
MIN_ROWS = 8
FORMAT_TOKENS = 128  # at most, of the chat template
FILLS = 16  # a batch of new prompts waits for its longest: .9 of the places are at work if it fills them as often
BATCH = 16
BATCHES = ("sft.batch_size", "dpo.batch_size", "dpo.replay_batch_size")
FIELDS = (
    *("parallel.replicas", "parallel.fsdp", "parallel.tensor", "parallel.sampling_tensor", *BATCHES),
    *("sft.grad_accum_steps", "dpo.grad_accum_steps", "sampling.max_concurrent", "prompts.batch_size"),
)


class Plan(NamedTuple):
    """What was chosen.

    values: the settings that were 0, with their values.
    reasons: lines for people.
    fits: whether the estimates say that training and sampling fit; True if the memory is not known.
    need: bytes of a device in training and in sampling, margin included.
    """

    values: dict[str, int]
    reasons: list[str]
    fits: bool
    need: dict[str, float]


def resolve(cfg: ConfigDict, workdir: str) -> tuple[ConfigDict, list[str]]:
    """The settings without 0 where this machine decides, and why they are so.

    A run that has begun keeps its batches, which its artifacts were made with, and its places where they fit.

    Args:
      cfg: the settings; those that are given stay.
      workdir: the working directory, whose config.json may hold what was chosen before.

    Raises:
      ConfigError: a setting cannot work, no mesh of the devices can, or the run does not fit.
      ModelFormatError: the model of model.init cannot be found.
    """
    validate(cfg, row_devices=1)
    if not _open(cfg):
        return cfg, []
    return _chosen(cfg, workdir, this_machine())


def _chosen(cfg: ConfigDict, workdir: str, machine: Machine) -> tuple[ConfigDict, list[str]]:
    pretrained = pretrained_config(cfg)
    there = _as_it_began(cfg, workdir)
    made = plan(there, pretrained, machine)
    if not made.fits and there.sampling.max_concurrent != cfg.sampling.max_concurrent:
        there.sampling.max_concurrent = 0  # on a smaller machine; no artifact was made with the places
        made = plan(there, pretrained, machine)
    if not made.fits:
        given = f"; or give {', '.join(sorted(_open(cfg)))} numbers of your own" if _open(cfg) else ""
        raise ConfigError(f"{machine.name} is too small: {' '.join(line.strip() for line in made.reasons)}{given}")
    there.update_from_flattened_dict(made.values)
    return there, made.reasons


def _as_it_began(cfg: ConfigDict, workdir: str) -> ConfigDict:
    """A copy of the settings with what was chosen for the run in a working directory, of what its artifacts hold."""
    cfg, stored = cfg.copy_and_resolve_references(), _stored(Workspace(cfg, workdir).path)
    for field in _open(cfg):
        section, name = field.split(".")
        if section not in RUNTIME_FIELDS and stored.get(section, {}).get(name):
            cfg[section][name] = stored[section][name]
    return cfg


def _stored(workdir: epath.Path) -> dict[str, Any]:
    """What config.json holds; nothing where it is damaged, which is told later."""
    with contextlib.suppress(storage.CorruptionError):
        stored = storage.read_json(workdir / CONFIG_FILE)
        return stored if isinstance(stored, dict) else {}
    return {}


def check_machine(cfg: ConfigDict, workdir: str, machine: Machine) -> tuple[ConfigDict, list[str]]:
    """Checks settings against a machine that need not be here. Returns as `resolve` would there.

    Raises:
      ConfigError: they cannot work there, or do not fit.
      ModelFormatError: the model of model.init cannot be found.
    """
    validate(cfg, 1, machine.platform)
    there, reasons = _chosen(cfg, workdir, machine)
    validate(there, machine.devices // there.parallel.tensor, machine.platform)
    return there, reasons


def pretrained_config(cfg: ConfigDict) -> DecoderConfig | None:
    """The shapes of model.init. A model of the hub whose shapes are not known by its name is downloaded.

    Raises:
      ModelFormatError: it cannot be found.
    """
    try:
        return known_config(cfg)
    except ConfigError:
        return read_config(hub.resolve_model_dir(cfg.model.init, weights=False))[0]


def _open(cfg: ConfigDict) -> set[str]:
    """The settings that the machine decides."""
    fields = {field for field in FIELDS if not _get(cfg, field)}
    return fields - ({"parallel.sampling_tensor"} if cfg.parallel.tensor else set())


def plan(cfg: ConfigDict, pretrained: DecoderConfig | None, machine: Machine) -> Plan:
    """Chooses the settings that are 0.

    Args:
      cfg: the settings.
      pretrained: the shapes of model.init, if there is one.
      machine: where the run is to be.

    Raises:
      ConfigError: no arrangement of the devices divides the model and the batches.
    """
    cfg, pair_len = cfg.copy_and_resolve_references(), longest_side(cfg)
    chosen = _open(cfg)
    _set(cfg, chosen, "parallel.replicas", machine.slices)
    _check_divisible(cfg, machine)
    for field in ("sft.grad_accum_steps", "dpo.grad_accum_steps"):
        _set(cfg, chosen, field, 1)
    for field in BATCHES:
        _set(cfg, chosen, field, BATCH)
    room, need = machine.memory * USABLE or float("inf"), {"training": 0.0, "sampling": 0.0}
    for training in _training_candidates(cfg, chosen, pretrained, machine):
        sizes = (training_bytes(cfg, pretrained, training, s, pair_len, machine.hardware) for s in ("sft", "dpo"))
        need["training"] = MARGIN * max(sizes)
        need["sampling"] = _choose_sampling(cfg, chosen, pretrained, machine, training)
        if max(need.values()) <= room:
            break
    if not (need["training"] and need["sampling"]):
        raise _no_mesh(cfg, machine, "train" if not need["training"] else "sample")
    _set(cfg, chosen, "prompts.batch_size", min(FILLS * cfg.sampling.max_concurrent, cfg.prompts.count))
    values = {field: _get(cfg, field) for field in FIELDS if field in chosen}
    fits = max(need.values()) <= room
    return Plan(values, _reasons(values, need, machine, fits), fits, need)


def _check_divisible(cfg: ConfigDict, machine: Machine) -> None:
    """Raises ConfigError where the axes that are given cannot share the devices."""
    p = cfg.parallel
    if machine.platform == "tpu" and machine.slices > 1 and p.replicas != machine.slices:
        raise ConfigError(
            f"parallel.replicas is {p.replicas}, but {machine.name} has {machine.slices} slices: set it to that"
        )
    for tensor, shown in ((p.tensor, "tensor"), (p.sampling_tensor, "sampling_tensor")):
        fsdp = p.fsdp if shown == "tensor" else 1
        if machine.devices % (p.replicas * (fsdp or 1) * (tensor or 1)):
            raise ConfigError(
                f"parallel.replicas {p.replicas}, parallel.fsdp {fsdp} and parallel.{shown} {tensor} do not share the "
                f"{machine.devices} devices of {machine.name}: choose numbers whose product divides {machine.devices}"
            )


def _no_mesh(cfg: ConfigDict, machine: Machine, what: str) -> ConfigError:
    batches = ", ".join(f"{field} {size}" for field, size in _batches(cfg).items())
    return ConfigError(
        f"no mesh of the {machine.devices} devices of {machine.name} can {what} this model with {batches}, "
        f"parallel.fsdp {cfg.parallel.fsdp} and parallel.tensor {cfg.parallel.tensor} (0: any): use batches that "
        "more devices divide, or other numbers of devices"
    )


def _batches(cfg: ConfigDict) -> dict[str, int]:
    """The batches that are trained on, by their settings."""
    batches = {"sft.batch_size": cfg.sft.batch_size, "dpo.batch_size": cfg.dpo.batch_size}
    batches |= {} if cfg.model.init else {"pretrain.batch_size": cfg.pretrain.batch_size}
    return batches | ({"dpo.replay_batch_size": cfg.dpo.replay_batch_size} if cfg.dpo.replay_weight else {})


def _accumulations(cfg: ConfigDict, chosen: set[str], stage: str, row_devices: int) -> list[int]:
    """Numbers of microbatches that split each batch of a stage among the devices; the fewest first."""
    sizes = [size for field, size in _batches(cfg).items() if field.startswith(f"{stage}.")]
    most, left = divmod(math.gcd(*sizes), row_devices)
    if left or not sizes:
        return [] if sizes else [1]
    field = f"{stage}.grad_accum_steps"
    wanted = range(1, most + 1) if field in chosen else [cfg[stage].grad_accum_steps]
    return [steps for steps in wanted if most % steps == 0]


def longest_side(cfg: ConfigDict) -> int:
    """Tokens that a side of a pair may have: those of a new prompt and its response. Prompts of a file and pairs of
    judgments may be as long as a text."""
    if cfg.prompts.source or cfg.dpo.judge_pairs != "none":
        return cfg.model.max_length
    return min(cfg.model.max_length, cfg.prompts.max_new_tokens + cfg.responses.max_new_tokens + FORMAT_TOKENS)


def _training_candidates(
    cfg: ConfigDict, chosen: set[str], pretrained: DecoderConfig | None, machine: Machine
) -> Iterator[MeshShape]:
    """Meshes for which the settings are set in turn, the cheapest first, the last one divides the model most.

    Weights are shared by no devices, or by all: in between each step gathers as much, and sums gradients besides.
    """
    p, specs = cfg.parallel, _specs(cfg, pretrained, machine.hardware)
    per_replica = machine.devices // p.replicas
    for tensor in _sizes(per_replica, p.tensor, "parallel.tensor" in chosen):
        shared = per_replica // tensor
        sizes = _sizes(shared, p.fsdp, "parallel.fsdp" in chosen)
        meshes = [MeshShape(p.replicas, shared // fsdp, fsdp, tensor) for fsdp in sizes]
        meshes = [mesh for mesh in meshes if is_divisible(specs, mesh)]
        row_devices = machine.devices // tensor
        for field in BATCHES:
            stage = field.split(".")[0]
            given = 1 if f"{stage}.grad_accum_steps" in chosen else cfg[stage].grad_accum_steps
            _set(cfg, chosen, field, round_up(BATCH, row_devices * given))
        steps = {s: _accumulations(cfg, chosen, s, row_devices) for s in ("sft", "dpo", "pretrain")}
        if not meshes or not all(steps.values()):
            continue
        _set(cfg, chosen, "parallel.tensor", tensor)
        fewest = min(steps["sft"][0], steps["dpo"][0])
        more = sorted({*steps["sft"], *steps["dpo"]})
        for mesh, limits in dict.fromkeys([(meshes[0], (fewest,)), (meshes[-1], tuple(more))]):
            _set(cfg, chosen, "parallel.fsdp", mesh.fsdp)
            for limit in limits:
                for stage in ("sft", "dpo"):
                    most = max((n for n in steps[stage] if n <= limit), default=steps[stage][0])
                    _set(cfg, chosen, f"{stage}.grad_accum_steps", most)
                yield mesh


def _choose_sampling(
    cfg: ConfigDict, chosen: set[str], pretrained: DecoderConfig | None, machine: Machine, training: MeshShape
) -> float:
    """Sets the mesh and the places that decode most tokens in a second. Returns the bytes that they need.

    A step reads all weights of a device and, on average, half of the cache; it takes as long as that. At the end places
    are free until the longest text, of twice the mean length, has ended. Where nothing fits, the settings are those
    that need least.
    """
    samples = cfg.prompts.count * cfg.responses.num_samples
    room, best, best_rate, need = machine.memory * USABLE or float("inf"), {}, 0.0, 0.0
    for mesh in _sampling_candidates(cfg, chosen, pretrained, machine):
        size = sampling_bytes(cfg, pretrained, mesh, training, machine.hardware)
        tried = {f: _get(cfg, f) for f in ("parallel.sampling_tensor", "sampling.max_concurrent")}
        if not best or (size * MARGIN < need and need > room):
            best, need = tried, size * MARGIN
        if size * MARGIN > room:
            continue
        weights, waiting = weight_bytes(cfg, pretrained, mesh, machine.hardware)
        steps = samples / cfg.sampling.max_concurrent + 1  # in mean lengths
        rate = 1 / steps / (weights + (size - weights) / 2 + waiting)
        if rate > best_rate:
            best, best_rate, need = tried, rate, size * MARGIN
    for field, value in best.items():
        _set(cfg, chosen, field, value)
    return need


def _sampling_candidates(
    cfg: ConfigDict, chosen: set[str], pretrained: DecoderConfig | None, machine: Machine
) -> Iterator[MeshShape]:
    """Meshes for which the settings are set in turn, each with fewer and fewer places."""
    p, specs = cfg.parallel, _specs(cfg, pretrained, machine.hardware)
    per_replica, wanted = machine.devices // p.replicas, cfg.prompts.count * cfg.responses.num_samples
    for tensor in _sizes(per_replica, p.sampling_tensor or p.tensor, "parallel.sampling_tensor" in chosen):
        mesh = MeshShape(p.replicas, per_replica // tensor, 1, tensor)
        if not is_divisible(specs, mesh, sampling=True):
            continue
        _set(cfg, chosen, "parallel.sampling_tensor", tensor)
        groups = p.replicas * mesh.data
        rows = min(MAX_ROWS, max(MIN_ROWS, -(-wanted // groups)))
        while rows >= MIN_ROWS:
            _set(cfg, chosen, "sampling.max_concurrent", rows * groups)
            yield mesh
            if "sampling.max_concurrent" not in chosen:
                break
            rows //= 2


def _sizes(devices: int, given: int, is_free: bool) -> list[int]:
    """The sizes that an axis may have: the given one, or the powers of two that divide the devices."""
    return [n for n in (_powers(1, devices) if is_free else (given,)) if devices % n == 0]


def _powers(first: int, last: int = 1 << 30) -> Iterator[int]:
    return itertools.takewhile(lambda n: n <= last, (first << i for i in range(31)))


def _specs(cfg: ConfigDict, pretrained: DecoderConfig | None, hardware: Hardware) -> dict:
    """The parameters; a vocabulary that is not trained yet counts as divisible."""
    try:
        build_model_config(cfg, pretrained, 1 << 15, hardware, adapters=True)
    except ValueError as error:
        raise ConfigError(f"lora.rank is {cfg.lora.rank}: {error}") from None
    return param_specs(build_model_config(cfg, pretrained, 1 << 15, hardware))


def _reasons(values: dict[str, int], need: dict[str, float], machine: Machine, fits: bool) -> list[str]:
    shown = ", ".join(f"{field} {value:,}" for field, value in values.items()) or "none, all are given"
    lines = [f"settings from the machine ({machine.name}): {shown}"]
    if machine.memory:
        sizes = " and ".join(f"{size / 1e9:,.1f} GB in {name}" for name, size in need.items())
        verdict = "" if fits else ": TOO LITTLE; take more or larger devices, or set lora.rank"
        have = f"it has {machine.memory / 1e9:,.1f} GB"
        lines.append(f"  each device takes about {sizes}, margin included; {have}{verdict}")
    return lines


def _get(cfg: ConfigDict, field: str) -> int:
    section, name = field.split(".")
    return cfg[section][name]


def _set(cfg: ConfigDict, chosen: set[str], field: str, value: int) -> None:
    if field in chosen:
        section, name = field.split(".")
        cfg[section][name] = value
