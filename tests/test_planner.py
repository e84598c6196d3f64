"""Settings from the machine: estimates against what the compiler needs, and what is chosen for a machine."""

import json

import pytest
from conftest import ROOT, assert_mentions, ended, micro

from selfreward_jax import config
from selfreward_jax.cli import check
from selfreward_jax.config import ConfigError
from selfreward_jax.config.comments import flatten_config
from selfreward_jax.config.presets import PRESETS
from selfreward_jax.config.validate import validate
from selfreward_jax.memory import planner
from selfreward_jax.memory.estimate import MeshShape, sampling_bytes, training_bytes
from selfreward_jax.memory.machines import GIB, Machine, parse_machine
from selfreward_jax.memory.models import known_config
from selfreward_jax.memory.planner import BATCH, BATCHES, FIELDS, MARGIN, check_machine, longest_side, plan, resolve
from selfreward_jax.parallel.hardware import Hardware

ROWS = [json.loads(line) for line in (ROOT / "benchmarks" / "fit_table.jsonl").read_text().splitlines()]
COMPILED = {}  # by preset, slice and options: the row of each program
for _row in ROWS:
    COMPILED.setdefault((_row["name"], _row["preset"], _row["slice"], _row["options"]), {})[_row["program"]] = _row
LARGE = [key for key in COMPILED if PRESETS.get(key[1], {}).get("model.init")]


def compiled_config(preset, options, chosen):
    """The settings that a row of docs/fits.md was compiled with."""
    c = config.get_config(preset)
    c.update_from_flattened_dict({"sampling.max_concurrent": 128, "sft.grad_accum_steps": 1, "dpo.grad_accum_steps": 1})
    c.update_from_flattened_dict({field: BATCH for field in BATCHES if not flatten_config(c)[field]})
    c.update_from_flattened_dict(chosen)
    given = dict(option.removeprefix("--config.").split("=") for option in options.split())
    known = flatten_config(c)
    c.update_from_flattened_dict({field: type(known[field])(value) for field, value in given.items()})
    return c


@pytest.mark.parametrize("key", LARGE, ids=lambda key: f"{key[0]}-{key[2]}")
def test_estimates_are_near_what_the_compiler_needs(key):
    """For every program that fits. One that is too small by more than the margin would be refused too late."""
    _, preset, machine, options = key
    rows, hardware = COMPILED[key], parse_machine(machine).hardware
    c = compiled_config(preset, options, rows["dpo"]["settings"])
    tokens = longest_side(c)
    (mesh, *_) = (MeshShape(*rows[name]["mesh"].values()) for name in ("sft", "dpo"))
    pretrained = known_config(c)
    for name in ("sft", "dpo"):
        if rows[name]["fits"]:
            ratio = training_bytes(c, pretrained, mesh, name, tokens, hardware) / rows[name]["peak"]
            assert 1 / MARGIN < ratio < 1.4, (name, ratio)
    sampled = [rows[name] for name in ("reshard", "merge", "prefill", "insert", "decode") if name in rows]
    if all(row["fits"] for row in sampled):
        tensor = c.parallel.sampling_tensor or mesh.tensor or 1
        chips = rows["decode"]["chips"]
        estimate = sampling_bytes(c, pretrained, MeshShape(1, chips // tensor, 1, tensor), mesh, hardware)
        ratio = estimate / max(row["peak"] for row in sampled)
        assert 1 / MARGIN < ratio < 1.4, ratio


# The first machine that a preset's docstring names, and what the planner makes of it.
FIRST_MACHINES = {
    "smollm2_135m": "v5e:1x1",
    "gemma3_270m": "v5e:1x1",
    "qwen3_0_6b": "h100:1",
    "gemma3_1b": "h100:1",
    "tinyllama": "h100:1",
    "smollm3_3b": "h100:4",
    "llama3_8b": "h100:8",
    "qwen3_8b": "h100:8",
    "llama2_70b": "v5p:4x4x4",
}


def test_each_preset_with_a_model_has_a_first_machine():
    assert set(FIRST_MACHINES) == {name for name, fields in PRESETS.items() if fields.get("model.init")}


@pytest.mark.parametrize("preset", FIRST_MACHINES)
def test_a_preset_fits_its_first_machine(preset):
    c, machine = config.get_config(preset), parse_machine(FIRST_MACHINES[preset])
    made = plan(c, known_config(c), machine)
    assert made.fits, made.reasons
    assert set(made.values) == {field for field in FIELDS if not flatten_config(c)[field]}
    c.update_from_flattened_dict(made.values)
    p = c.parallel
    assert machine.devices % (p.replicas * p.fsdp * p.tensor) == 0
    assert (machine.devices // p.replicas) % p.sampling_tensor == 0
    c.data.ift = c.data.eft = "any"
    validate(c, machine.devices // p.tensor, machine.platform)
    assert c.sampling.max_concurrent >= 8
    assert_mentions(" ".join(made.reasons), machine.name, "parallel.fsdp", "sampling.max_concurrent")


def test_what_is_given_stays():
    c = config.get_config("llama3_8b")
    given = {"parallel.fsdp": 4, "parallel.tensor": 2, "sampling.max_concurrent": 24, "dpo.grad_accum_steps": 2}
    c.update_from_flattened_dict(given)
    made = plan(c, known_config(c), parse_machine("v5p:2x2x2"))
    assert set(made.values) == {"parallel.replicas", "sft.grad_accum_steps", "prompts.batch_size"}
    assert made.values["prompts.batch_size"] == 16 * 24
    assert flatten_config(c)["parallel.fsdp"] == 4
    alone = config.get_config("llama3_8b")
    alone.parallel.fsdp = 8
    values = plan(alone, known_config(alone), parse_machine("v5e:2x4")).values
    assert (values["parallel.tensor"], values["parallel.replicas"]) == (1, 1)  # eight devices have no room for more
    c.parallel.tensor = 0
    assert "parallel.sampling_tensor" in plan(c, known_config(c), parse_machine("v5p:2x2x2")).values


def test_more_devices_share_more_and_few_split_the_batch():
    c = config.get_config("llama3_8b")
    plans = {name: plan(c, known_config(c), parse_machine(name)) for name in ("h100:1", "h100:8", "v6e:2x4", "v5e:4x8")}
    assert not plans["h100:1"].fits
    assert "TOO LITTLE" in plans["h100:1"].reasons[-1]
    assert plans["h100:8"].values["parallel.fsdp"] == 8
    assert plans["h100:8"].values["sampling.max_concurrent"] > plans["v6e:2x4"].values["sampling.max_concurrent"]
    assert plans["v5e:4x8"].values["parallel.tensor"] == 2  # 16 pairs cannot be shared by 32 devices
    small = config.get_config("tinyllama")
    assert plan(small, known_config(small), parse_machine("h100:1")).values["dpo.grad_accum_steps"] == 1
    assert plan(small, known_config(small), parse_machine("l4:1")).values["dpo.grad_accum_steps"] > 1


def test_a_batch_that_no_mesh_can_share_is_refused_by_its_name():
    c = config.get_config("llama2_70b")
    with pytest.raises(ConfigError) as caught:
        plan(c, known_config(c), parse_machine("v5e:16x16"))
    assert_mentions(str(caught.value), "sft.batch_size", 16, 256, "v5e:16x16")


@pytest.mark.parametrize(
    ("settings", "machine", "facts"),
    [
        ({"parallel.replicas": 3}, "v5e:2x4", ["parallel.replicas", 3, 8]),
        ({"parallel.tensor": 8}, "v5e:2x2", ["parallel.tensor", 8, 4]),
        ({"parallel.sampling_tensor": 3}, "v5e:2x2", ["parallel.sampling_tensor", 3, 4]),
        ({"parallel.replicas": 1}, "v5e:2x2*2", ["parallel.replicas", 1, 2, "v5e:2x2*2"]),
        ({"parallel.fsdp": 3}, "v5e:2x2", ["parallel.fsdp", 3, 4]),
        ({"parallel.tensor": 3}, "h100:3", ["parallel.tensor", 3]),
    ],
)
def test_devices_that_cannot_be_shared_so_are_refused(settings, machine, facts):
    c = config.get_config("tinyllama")
    c.update_from_flattened_dict(settings)
    with pytest.raises(ConfigError) as caught:
        plan(c, known_config(c), parse_machine(machine))
    assert_mentions(str(caught.value), *facts)


@pytest.mark.parametrize(
    ("preset", "settings", "machine"),
    [
        ("tinyllama", {"dpo.replay_batch_size": 4}, "l4:1"),
        ("tinyllama", {"sft.batch_size": 12, "dpo.batch_size": 12}, "l4:1"),
        ("llama3_8b", {"dpo.grad_accum_steps": 2}, "h100:16"),
        ("llama3_8b", {"sft.grad_accum_steps": 2}, "v5e:4x8"),
        ("llama3_8b", {"dpo.grad_accum_steps": 8, "sft.grad_accum_steps": 8}, "h100:8"),
    ],
)
def test_what_is_chosen_is_accepted(preset, settings, machine):
    """Batches and their microbatches are shared by the devices, also where one of them is given."""
    c, there = config.get_config(preset), parse_machine(machine)
    c.data.ift = c.data.eft = "any"
    c.update_from_flattened_dict(settings)
    values = plan(c, known_config(c), there).values
    c.update_from_flattened_dict(values)
    validate(c, there.devices // c.parallel.tensor, there.platform)
    assert {field: flatten_config(c)[field] for field in settings} == settings


@pytest.mark.parametrize(("machine", "batch"), [("l4:1", 16), ("v5e:2x4", 16), ("v5e:4x8", 32), ("h100:12", 24)])
def test_a_batch_is_the_papers_or_the_next_that_all_devices_share(machine, batch):
    c = config.get_config("smollm2_135m")
    values = plan(c, known_config(c), parse_machine(machine)).values
    assert [values[field] for field in ("sft.batch_size", "dpo.batch_size", "dpo.replay_batch_size")] == [batch] * 3
    c.update_from_flattened_dict({**values, "data.ift": "any", "data.eft": "any"})
    validate(c, parse_machine(machine).devices // c.parallel.tensor, parse_machine(machine).platform)


def test_a_chosen_batch_has_the_microbatches_that_are_given():
    c = config.get_config("smollm2_135m")
    c.dpo.grad_accum_steps = 4
    values = plan(c, known_config(c), parse_machine("h100:8")).values
    assert [values[field] for field in ("sft.batch_size", "dpo.batch_size", "dpo.replay_batch_size")] == [16, 32, 32]


def test_a_batch_of_new_prompts_fills_the_places_many_times():
    c = config.get_config("llama3_8b")
    made = plan(c, known_config(c), parse_machine("h100:8"))
    assert made.values["prompts.batch_size"] == min(16 * made.values["sampling.max_concurrent"], c.prompts.count)
    c.prompts.count = 100
    assert plan(c, known_config(c), parse_machine("h100:8")).values["prompts.batch_size"] == 100
    c.prompts.batch_size = 7
    assert "prompts.batch_size" not in plan(c, known_config(c), parse_machine("h100:8")).values


def test_slices_are_replicas():
    c = config.get_config("tinyllama")
    two = plan(c, known_config(c), Machine("two slices", Hardware("tpu"), 8, 16 * GIB, slices=2)).values
    assert (two["parallel.replicas"], two["parallel.fsdp"]) == (2, 4)


def test_an_unknown_memory_is_no_limit():
    c = config.get_config("gemma3_270m")
    made = plan(c, known_config(c), Machine("somewhere", Hardware("gpu", (9, 0)), 1, 0))
    assert made.fits
    assert made.values["dpo.grad_accum_steps"] == 1


def test_a_run_keeps_what_was_chosen_when_it_began(tmp_path):
    c = micro(2)
    c.update_from_flattened_dict(dict.fromkeys(FIELDS, 0))
    first, reasons = resolve(c, str(tmp_path))
    values = {field: flatten_config(first)[field] for field in FIELDS}
    assert all(values.values())
    assert reasons
    assert c.parallel.fsdp == 0  # the given settings are not changed
    stored = json.loads(first.to_json())
    stored["sampling"]["max_concurrent"], stored["sft"]["grad_accum_steps"] = 7, 2
    stored["parallel"]["fsdp"] = 64  # of another machine
    (tmp_path / "config.json").write_text(json.dumps(stored))
    later = flatten_config(resolve(c, str(tmp_path))[0])
    assert (later["sampling.max_concurrent"], later["sft.grad_accum_steps"]) == (7, 2)
    assert later["parallel.fsdp"] == values["parallel.fsdp"]
    c.sampling.max_concurrent = 12
    assert resolve(c, str(tmp_path))[0].sampling.max_concurrent == 12
    (tmp_path / "config.json").write_text("{")
    assert resolve(c, str(tmp_path))[0].sft.grad_accum_steps == values["sft.grad_accum_steps"]


def test_on_a_smaller_machine_a_run_takes_fewer_places_and_keeps_its_batches(tmp_path):
    c = config.get_config("llama3_8b")
    c.data.ift = c.data.eft = "any"
    first, _ = check_machine(c, str(tmp_path), parse_machine("v5e:4x8"))
    (tmp_path / "config.json").write_text(first.to_json())
    later, _ = check_machine(c, str(tmp_path), parse_machine("v5e:4x4"))
    assert later.sampling.max_concurrent < first.sampling.max_concurrent
    batches = ("sft.grad_accum_steps", "dpo.grad_accum_steps", "prompts.batch_size")
    assert [flatten_config(later)[f] for f in batches] == [flatten_config(first)[f] for f in batches]
    again, _ = check_machine(c, str(tmp_path), parse_machine("v5e:4x8"))
    assert again.sampling.max_concurrent == first.sampling.max_concurrent


def test_a_run_that_does_not_fit_this_machine_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "this_machine", lambda: Machine("8 x tiny", Hardware("gpu", (9, 0)), 8, 10**9))
    c = config.get_config("llama3_8b")
    c.data.ift = c.data.eft = "any"
    with pytest.raises(ConfigError) as caught:
        resolve(c, str(tmp_path))
    assert_mentions(str(caught.value), "8 x tiny", "1.0 GB", "parallel.fsdp", "sampling.max_concurrent")


def test_an_address_that_cannot_be_reached_is_refused(tmp_path):
    c = micro(2)
    c.parallel.fsdp = 0
    with pytest.raises(ConfigError) as caught:
        resolve(c, "nowhere://b/x")
    assert_mentions(str(caught.value), "nowhere://b/x")


def test_settings_without_a_zero_are_left_alone():
    c = micro(2)
    assert resolve(c, "/nowhere") == (c, [])


def test_a_check_for_another_machine(capsys, tmp_path):
    """Too small a slice, and a batch that it cannot share, are refused before anything is there."""
    options = [f"--config={ROOT}/configs/iter3.py:tiny", f"--workdir={tmp_path / 'run'}", "--config.data.ift_rows=50"]
    few = ["--config.data.eft_rows=50", "--config.data.prompt_rows=8", "--config.data.num_documents=50"]
    few += ["--config.parallel.fsdp=0", "--config.data.heldout_prompts=4", "--config.data.judge_eval_prompts=4"]
    assert ended(check, *options, *few, "--machine=v5e:2x4") == (0, "")
    assert_mentions(capsys.readouterr().out, "v5e:2x4", "parallel.fsdp")
    code, err = ended(check, *options, *few, "--machine=v5e:4x4")
    assert (code, err.count("\n")) == (2, 1)
    assert_mentions(err, "pretrain.batch_size", 8, 16)
    for bad in ("model.remat=ful", "judge.num_samples=0", "model.num_kv_heads=0", "model.dtype=float33"):
        code, err = ended(check, *options, *few, f"--config.{bad}", "--machine=v5e:2x4")
        assert (code, err.count("\n")) == (2, 1)
        assert_mentions(err, bad.partition("=")[0])
        code, err = ended(check, *options, *few, f"--config.{bad}")
        assert (code, err.count("\n")) == (2, 1)
    big = ["--config.model.dim=16384", "--config.model.num_layers=64", "--config.model.mlp_dim=65536"]
    code, err = ended(check, *options, *few, *big, "--machine=v5e:2x4")
    assert (code, err.count("\n")) == (2, 1)
    assert_mentions(err, "v5e:2x4")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", "v5e v5e:0 v5e:2x2*0 v7:2x2 h100 h100:0 h100:many v5e:2x2x2x2".split())
def test_an_unknown_machine_is_refused(text):
    with pytest.raises(ConfigError) as caught:
        parse_machine(text)
    assert_mentions(str(caught.value), repr(text), "v5p:4x4x4", "h100:8")


def test_machines_have_their_memory():
    assert parse_machine("v5p:4x4x4")[1:] == (Hardware("tpu"), 64, 95 * GIB, 1)
    assert parse_machine("v6e:16")[1:] == (Hardware("tpu"), 16, 32 * GIB, 1)
    assert parse_machine("v5e:4x4*2")[1:] == (Hardware("tpu"), 32, 16 * GIB, 2)
    assert parse_machine("h100:8")[1:] == (Hardware("gpu", (9, 0)), 8, 60 * 10**9, 1)  # what JAX takes of 80
    assert parse_machine("tpu7x:2x2x1")[1:] == (Hardware("tpu"), 8, 96 * GIB, 1)  # two devices on a chip
    assert parse_machine("gpu:16")[1:] == (Hardware("gpu", (9, 0)), 16, 0, 1)
