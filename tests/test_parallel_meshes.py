"""Meshes and the sharding of weights, without eight devices."""

from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AbstractMesh

from selfreward_jax import config
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import is_param_spec, param_specs
from selfreward_jax.parallel.mesh import AXES, make_mesh, sampling_mesh
from selfreward_jax.parallel.sharding import SAMPLING, TRAINING, param_shardings
from selfreward_jax.runs.run import make_run

# --- meshes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "product"), [({"fsdp": 3}, 3), ({"fsdp": 2, "tensor": 8}, 16), ({"fsdp": 2, "replicas": 3}, 6)]
)
def test_sizes_that_do_not_divide_the_devices_are_refused(sizes, product):
    fields = [rf"parallel\.{name}\b.*\b{sizes.get(name, 1)}\b.*" for name in ("replicas", "fsdp", "tensor")]
    with pytest.raises(ValueError, match=rf"\b8\b.*{''.join(fields)}\b{product}\b"):
        make_mesh(**sizes, devices=[SimpleNamespace(id=i) for i in range(8)])


@pytest.mark.parametrize(("replicas", "devices"), [(1, 8), (2, 4)])
def test_sampling_tensor_that_does_not_divide_a_replica_is_refused(replicas, devices):
    mesh = AbstractMesh((replicas, 8 // replicas, 1, 1), AXES)
    with pytest.raises(ValueError, match=rf"\b{devices}\b.*parallel\.sampling_tensor\b.*\b3\b"):
        sampling_mesh(mesh, 3)


def test_make_run_refuses_a_mesh_by_the_name_of_its_setting(tmp_path):
    cfg = config.get_config("micro")
    cfg.parallel.sampling_tensor = 3
    with pytest.raises(config.ConfigError, match=r"parallel\.sampling_tensor\b.*\b3\b"):
        make_run(cfg, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


class Chip:
    """The attributes of a TPU device that `make_mesh` reads; each slice, if there are several, is `side` x `side`."""

    platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

    def __init__(self, number, side, slices=0):
        self.id = self.process_index = number
        within = number % side**2
        self.coords = (within % side, within // side, 0)
        if slices:
            self.slice_index = number // side**2


def chips(side, slices):
    return [Chip(i, side, slices) for i in range(max(1, slices) * side**2)]


def test_replicas_are_the_slices_of_a_tpu():
    mesh = make_mesh(fsdp=2, replicas=3, devices=chips(2, 3))
    assert dict(mesh.shape) == {"replica": 3, "data": 2, "fsdp": 2, "tensor": 1}
    assert [{d.slice_index for d in replica.flat} for replica in mesh.devices] == [{0}, {1}, {2}]
    with pytest.raises(ValueError, match=r"parallel\.replicas\b.*\b1\b.*\b3\b"):
        make_mesh(fsdp=2, devices=chips(2, 3))


@pytest.mark.parametrize(
    ("sizes", "slices", "shape"),
    [({"fsdp": 8}, 0, (1, 2, 8, 1)), ({"tensor": 2}, 0, (1, 8, 1, 2)), ({"fsdp": 8, "replicas": 2}, 2, (2, 2, 8, 1))],
)
def test_a_mesh_axis_may_span_several_sides_of_a_slice(sizes, slices, shape):
    assert make_mesh(**sizes, devices=chips(4, slices)).devices.shape == shape


# --- sharding ------------------------------------------------------------------------------------------------------

CFG = DecoderConfig(
    vocab_size=24,
    dim=16,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=6,
    mlp_dim=12,
    tie_embeddings=False,
    attention_bias=True,
    qk_norm="head",
    lora_rank=3,
    lora_targets=("wo", "w_up"),
)
PARTS = {  # of a device: in training with fsdp 2 and tensor 2, in sampling with tensor 4
    "embed": ((12, 8), (6, 16)),
    "norm": ((8,), (16,)),
    "head": ((8, 12), (16, 6)),
    "attn_norm": ((2, 8), (2, 16)),
    "wq": ((2, 8, 4, 6), (2, 16, 2, 6)),
    "wk": ((2, 8, 2, 6), (2, 16, 1, 6)),
    "wv": ((2, 8, 2, 6), (2, 16, 1, 6)),
    "wo": ((2, 4, 6, 8), (2, 2, 6, 16)),
    "wo_a": ((2, 4, 6, 3), (2, 2, 6, 3)),
    "wo_b": ((2, 3, 8), (2, 3, 16)),
    "bq": ((2, 4, 6), (2, 2, 6)),
    "bk": ((2, 2, 6), (2, 1, 6)),
    "bv": ((2, 2, 6), (2, 1, 6)),
    "q_norm": ((2, 6), (2, 6)),
    "k_norm": ((2, 6), (2, 6)),
    "mlp_norm": ((2, 8), (2, 16)),
    "w_gate": ((2, 8, 6), (2, 16, 3)),
    "w_up": ((2, 8, 6), (2, 16, 3)),
    "w_up_a": ((2, 8, 3), (2, 16, 3)),
    "w_up_b": ((2, 3, 6), (2, 3, 3)),
    "w_down": ((2, 6, 8), (2, 3, 16)),
}


@pytest.mark.parametrize(("table", "sizes"), [(TRAINING, (1, 2, 2, 2)), (SAMPLING, (1, 2, 1, 4))])
def test_weights_are_sharded_as_in_the_tables(table, sizes):
    declared = param_specs(CFG)
    shardings = param_shardings(declared, AbstractMesh(sizes, AXES), table)
    actual = {
        path[-1].key: s.shard_shape(w.shape)
        for (path, w), s in zip(
            jax.tree_util.tree_leaves_with_path(declared, is_leaf=is_param_spec),
            jax.tree.leaves(shardings),
            strict=True,
        )
    }
    assert actual == {name: parts[table is SAMPLING] for name, parts in PARTS.items()}


@pytest.mark.parametrize(
    ("changed", "table", "sizes", "message"),
    [
        (
            {"num_kv_heads": 2},
            TRAINING,
            (1, 2, 1, 4),
            r"\b2\b.*\bkv_heads\b.*\b4\b.*parallel\.tensor\b",
        ),
        ({"num_kv_heads": 2}, SAMPLING, (1, 2, 1, 4), r"\b2\b.*\bkv_heads\b.*parallel\.sampling_tensor\b"),
        (
            {"vocab_size": 27},
            TRAINING,
            (1, 4, 1, 2),
            r"\b27\b.*\bvocab\b.*\bembed\b.*\b2\b.*parallel\.tensor\b",
        ),
        ({"dim": 15}, TRAINING, (1, 4, 2, 1), r"\b15\b.*\bembed\b.*\b2\b.*parallel\.fsdp\b"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(changed, table, sizes, message):
    cfg = DecoderConfig(**vars(CFG) | changed)
    with pytest.raises(ValueError, match=message):
        param_shardings(param_specs(cfg), AbstractMesh(sizes, AXES), table)
