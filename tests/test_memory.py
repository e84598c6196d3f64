"""Does a run fit? Reading compiled programs; the programs on a CPU; slices and GPUs where their compilers are."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest
from conftest import ROOT, assert_mentions, ended

from selfreward_jax import config
from selfreward_jax.cli import fits
from selfreward_jax.config import presets
from selfreward_jax.llm import hub
from selfreward_jax.llm.hf_config import write_config
from selfreward_jax.llm.parameters import param_specs, parameter_count
from selfreward_jax.memory import collectives, models
from selfreward_jax.memory.programs import NAMES, programs
from selfreward_jax.memory.sampling_programs import DecodeShape, decode_shapes
from selfreward_jax.parallel.mesh import make_mesh

ITER3 = f"--config={ROOT}/configs/iter3.py"
HLO = """
HloModule jit_step, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %gathered = bf16[8,16]{1,0:T(8,128)} all-gather(%part), channel_id=1, dimensions={1}
  %both = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%x, %y), channel_id=2, to_apply=%add
  %start = (bf16[2,16]{1,0}, bf16[8,16]{1,0}) all-gather-start(%part), channel_id=5, dimensions={0}
}

%started (q: bf16[2,16]) -> bf16[8,16] {
  %again = bf16[8,16]{1,0} all-gather(%q), channel_id=1, dimensions={1}
}

%counts (p: (s32[], f32[8,4])) -> pred[] {
  %turns = u32[]{:T(128)} constant(30)
  ROOT %below = pred[] compare(%i, %turns), direction=LT
}

%open (p: (s32[], f32[8,4])) -> pred[] {
  %most = s32[] constant(1024)
  %below = pred[] compare(%i, %most), direction=LT
  ROOT %goes_on = pred[] and(%below, %some)
}

%token (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %moved = f32[4,8]{1,0} all-to-all(%x), channel_id=3
  %inner = (s32[], f32[8,4]) while(%t), condition=%counts, body=%body
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %scattered = f32[2,4]{1,0} reduce-scatter(%x), channel_id=4, to_apply=%add
  %begun = ((f32[8,4]{1,0}), (f32[4,4]{1,0})) reduce-scatter-start(%x), channel_id=6, to_apply=%add
  %loop = (s32[], f32[8,4]) while(%t), condition=%open, body=%token
  ROOT %used = f32[8,4] fusion(%scattered), kind=kLoop, calls=%started
}
"""


def test_collectives_are_counted_with_the_iterations_of_their_loops():
    actual = {(c.kind, c.bytes, c.elements, c.executions) for c in collectives.parse_collectives(HLO)}
    assert actual == {
        ("reduce-scatter", 32, 8, 1),
        ("reduce-scatter", 64, 16, 1),
        ("all-to-all", 128, 32, 1),  # once a token; the number of tokens is not known
        ("all-gather", 256, 128, 30),  # the one of channel 1, which occurs twice in the text
        ("all-reduce", 28, 6, 30),
    } | {("all-gather", 256, 128, 30)}
    assert collectives.totals_by_kind(collectives.parse_collectives(HLO))["all-gather"] == {
        "count": 60,
        "bytes": 60 * 256,
    }


def test_a_loop_runs_as_often_as_the_compiler_says():
    """As in the text of programs for GPUs, whose conditions are fusions."""
    stated = HLO.replace("%below = pred[] compare(%i, %turns), direction=LT", "%below = pred[] fusion(%i)").replace(
        "condition=%counts, body=%body", 'condition=%counts, body=%body, backend_config={"known_trip_count":{"n":"15"}}'
    )
    actual = {(c.kind, c.executions) for c in collectives.parse_collectives(stated)}
    assert actual == {("reduce-scatter", 1), ("all-to-all", 1), ("all-gather", 15), ("all-reduce", 15)}


def test_known_models_have_the_parameter_counts_of_their_names():
    counts = {name: parameter_count(param_specs(cfg)) for name, cfg in models.KNOWN_MODELS.items()}
    expected = {
        "SmolLM2-135M": 134_515_008,
        "TinyLlama-1.1B-intermediate-step-1431k-3T": 1_100_048_384,
        "gemma-3-270m": 268_098_176,
        "gemma-3-1b-pt": 999_885_952,
        "gemma-3-27b-pt": 27_009_346_304,
        "Qwen3-0.6B-Base": 596_049_920,
        "SmolLM3-3B-Base": 3_075_098_624,
        "Llama-3.1-8B": 8_030_261_248,
        "Qwen3-8B-Base": 8_190_735_360,
        "Qwen3-30B-A3B-Base": 30_532_122_624,
        "Llama-2-70b-hf": 68_976_648_192,
    }
    assert counts == expected


def test_every_preset_with_a_model_has_a_known_one():
    inits = {name: config.get_config(name).model.init for name in presets.PRESETS}
    assert len([init for init in inits.values() if init]) >= 9
    for init in filter(None, inits.values()):
        owner_and_name, revision = hub.parse_name(init)
        assert revision == "main"
        assert owner_and_name.rpartition("/")[2] in models.KNOWN_MODELS


def test_a_folder_precedes_a_known_name_and_an_unknown_name_is_refused(tmp_path):
    c = config.get_config("smollm2_135m")
    assert models.known_config(c) == models.KNOWN_MODELS["SmolLM2-135M"]
    folder = tmp_path / "SmolLM2-135M"
    folder.mkdir()
    tiny_llama = models.KNOWN_MODELS["TinyLlama-1.1B-intermediate-step-1431k-3T"]
    described = write_config(tiny_llama, None, "float32", max_position_embeddings=2048)
    (folder / "config.json").write_text(json.dumps(described))
    c.model.init = str(folder)
    assert models.known_config(c).num_layers == 22
    c.model.init = "Some-3B"
    with pytest.raises(config.ConfigError, match=r"'Some-3B'.*SmolLM2-135M"):
        models.known_config(c)
    assert models.known_config(config.default_config()) is None


@pytest.mark.parametrize("lora", [0, 4])
def test_the_programs_of_a_run_compile_from_shapes_alone(lora):
    c = config.get_config("micro")
    c.lora.rank, c.optimizer.name = lora, "adamw"
    made = {p.name: p for p in programs(c, None, make_mesh(devices=jax.devices()[:1]), 64)}
    assert tuple(made) == tuple(name for name in NAMES if lora or name != "merge")
    for program in made.values():
        memory = program.lowered.compile().memory_analysis()
        if program.name not in ("reshard", "insert"):
            assert memory.argument_size_in_bytes >= program.bytes["params"]
        expected = {"reshard": program.resident_bytes, "prefill": program.bytes.get("cache")}
        expected["insert"] = program.bytes["params"]
        assert program.resident_bytes == expected.get(program.name, 0)
    trained = made["dpo"].bytes["optimizer"] / made["dpo"].bytes["params"]
    assert trained > 1.9 if not lora else trained < 0.7  # two moments of all weights, or of the adapters


def test_decode_shapes_cover_every_stage_that_samples():
    c, mesh = config.get_config("llama3_8b"), make_mesh(devices=jax.devices()[:1])
    c.sampling.max_concurrent = 128
    shapes = decode_shapes(c, mesh)
    assert DecodeShape(128, 3840, 1, 256) in shapes  # new prompts, one sample each
    assert DecodeShape(128, 3072, 4, 1024) in shapes  # responses
    assert DecodeShape(128, 3840, 3, 256) in shapes  # votes
    assert DecodeShape(128, 3072, 1, 1024) in shapes  # one response per prompt, for evaluation
    assert max(d.cached_tokens for d in shapes) == 128 * 4096
    assert DecodeShape(128, 3840, 4, 256) in shapes  # the baseline's judgments
    c.eft.source, c.pairwise.method, c.pairwise.max_new_tokens = "scores", "pairwise", 64
    shapes = decode_shapes(c, mesh)
    assert DecodeShape(128, 3840, 4, 256) not in shapes
    assert DecodeShape(128, 4096, 1, 64) in shapes  # 4,032 tokens, padded


def test_early_stopping_samples_while_the_training_state_is_resident():
    c = config.get_config("micro")
    c.dpo.eval_every = 10
    made = {p.name: p for p in programs(c, None, make_mesh(devices=jax.devices()[:1]), 64)}
    state = made["dpo"].bytes
    assert made["decode"].resident_bytes == made["decode"].bytes["training"] == state["params"] + state["optimizer"]
    assert made["dpo"].resident_bytes == 0


def test_weights_are_resharded_one_by_one():
    c = config.get_config("micro")
    (moved,) = programs(c, None, make_mesh(devices=jax.devices()[:1]), 64, ["reshard"])
    weight = 4 * 640 * 32  # the embedding is the largest, in float32 in both layouts
    assert moved.bytes["params"] - moved.resident_bytes == 2 * weight
    assert moved.lowered.compile().memory_analysis().argument_size_in_bytes == weight


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ([ITER3], ["topology", "''", "v5p:4x4x4", "h100:8"]),
        ([ITER3, "--topology=v9:2x2"], ["'v9:2x2'", "v5e"]),
        ([ITER3, "--topology=v5e:2"], ["'v5e:2'"]),
        ([ITER3, "--topology=gpu:2"], ["'gpu:2'", "h100"]),
        ([ITER3, "--topology=h100:12"], ["'h100:12'", 8]),
    ],
)
def test_a_slice_that_does_not_exist_is_refused(options, facts):
    code, err = ended(fits, *options)
    assert (code, err.count("\n")) == (2, 1), err
    assert_mentions(err, *facts)


def test_suggest_fix_names_a_setting_of_the_program_that_does_not_fit():
    c, gib = config.get_config("llama3_8b"), 1 << 30
    c.update_from_flattened_dict({"sampling.max_concurrent": 128, "dpo.grad_accum_steps": 1, "sft.grad_accum_steps": 1})
    c.parallel.update(fsdp=8, tensor=1, sampling_tensor=4)
    row = {"peak": 20.0 * gib, "hbm": 16 * gib, "mesh": {"fsdp": 8, "tensor": 1}}
    moderate = {"params": 4 * gib, "optimizer": 8 * gib}
    assert_mentions(fits.suggest_fix(c, row | {"program": "dpo", "bytes": moderate}), "dpo.grad_accum_steps", 1)
    crowded = fits.suggest_fix(c, row | {"program": "sft", "bytes": {"params": 8 * gib, "optimizer": 16 * gib}})
    assert_mentions(crowded, 150, 4, "lora.rank")
    wide = fits.suggest_fix(c, row | {"program": "decode", "bytes": {"params": 15 * gib}})
    assert_mentions(wide, "parallel.sampling_tensor", 4)
    assert_mentions(
        fits.suggest_fix(c, row | {"program": "decode", "bytes": {"params": 2 * gib}}), "sampling.max_concurrent", 128
    )


def test_peak_memory_is_parsed_from_the_compilers_error():
    gib = 1 << 30
    message = "the total memory required for HLO temporaries (22.32G) exceeds available HBM (15.75G)"
    assert fits._peak_from_error(message, 2 * gib, gib) == pytest.approx(24.32 * gib)
    message = "Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm."
    assert fits._peak_from_error(message, 2 * gib, gib) == 1.5 * gib
    assert fits._peak_from_error("hbm, and no figure", 7, 2) == 7


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra `tpu`")
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None or jax.__version_info__ < (0, 12),
    reason="needs the extra `cuda` and jax 0.12",
)


def fit(*options):
    """Exit code and rows of the program."""
    command = [sys.executable, "-m", "selfreward_jax", "fits", "--json", "--tokens=2048", *options]
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")  # with these it would compile other programs than a run
    env = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert rows, done.stderr[-3000:]
    return done.returncode, rows


@pytest.mark.slow
@needs_libtpu
def test_8b_fits_sixteen_v5e_and_not_eight():
    eight = f"{ITER3}:llama3_8b"
    code, rows = fit(eight, "--topology=v5e:4x4", "--config.parallel.fsdp=16", "--only=dpo,reference")
    assert (code, [row["program"] for row in rows]) == (0, ["dpo", "reference"])
    assert all(row["fits"] and row["peak"] < 15 << 30 for row in rows)
    assert not any("collective-permute" in row["collectives"] for row in rows)  # no products in rings
    code, (row,) = fit(eight, "--topology=v5e:2x4", "--config.parallel.fsdp=8", "--only=dpo")
    assert (code, row["fits"]) == (1, False)


@pytest.mark.slow
@needs_cuda
def test_programs_compile_for_gpus_that_are_not_here():
    """A T4 has no bfloat16 products for "xla" attention; of eight GPUs each gathers the weights of every layer."""
    code, rows = fit(f"{ITER3}:smollm2_135m", "--topology=t4:1", "--only=sft,dpo,decode")
    assert (code, [row["program"] for row in rows]) == (0, ["sft", "dpo", "decode"])
    assert all(1 << 30 < row["peak"] < 9 << 30 and not row["collectives"] for row in rows)
    code, (row,) = fit(f"{ITER3}:llama3_8b", "--topology=h100:8", "--only=dpo")
    assert (code, row["fits"], row["mesh"]["fsdp"]) == (0, True, 8)
    assert row["collectives"]["all-gather"]["count"] > 7 * 32


@pytest.mark.slow
@needs_libtpu
def test_70b_fits_sixty_four_v5p_below_30_gib_per_chip():
    code, (row,) = fit(f"{ITER3}:llama2_70b", "--topology=v5p:4x4x4", "--only=dpo")
    assert (code, row["fits"]) == (0, True)
    assert row["peak"] < 30 << 30
    assert row["collectives"]["all-gather"]["count"] > 80  # each layer's weights, at least once
