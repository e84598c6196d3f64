"""Low-rank adapters: in a model, in training, and in a run from M0 to an exported M2."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_mentions, ended, run
from etils import epath
from orbax.checkpoint.experimental import v1 as ocp
from safetensors import safe_open
from safetensors.numpy import load_file
from test_trainer import PAIRS, TEXTS, dpo_settings

from selfreward_jax import config
from selfreward_jax.cli import export
from selfreward_jax.config.validate import validate
from selfreward_jax.llm import hf, lora, peft
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.hf_config import write_config
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import MATRICES, init_params, is_param_spec, param_specs, parameter_count
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import param_shardings
from selfreward_jax.runs.run import open_run
from selfreward_jax.stages import dpo as dpo_stage
from selfreward_jax.stages import training
from selfreward_jax.train import dpo, sft, trainer

BARE = DecoderConfig(vocab_size=30, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=24)
CFG = replace(BARE, lora_rank=3, lora_alpha=7.0, lora_targets=tuple(MATRICES))
SUBSET = replace(CFG, lora_rank=2, lora_targets=("wq", "wo"), scan_layers=True)
TOKENS = np.random.default_rng(1).integers(0, 30, (2, 7)).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def logits(cfg, params, tokens=TOKENS):
    return Decoder(cfg).apply({"params": params}, tokens)


def split(cfg, params):
    """Splits parameters into the frozen ones and the adapters."""
    names = lora.adapter_specs(cfg)["layers"]
    layers = {name: x for name, x in params["layers"].items() if name not in names}
    return params | {"layers": layers}, {"layers": {name: params["layers"][name] for name in names}}


# --- the model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [CFG, replace(CFG, scan_layers=True), SUBSET], ids=["all", "all_scanned", "subset"])
def test_the_merged_model_is_the_model(cfg, random_params):
    params = random_params(cfg)
    merged = lora.merge(cfg, params)
    bare = replace(cfg, lora_rank=0)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(lambda w: w.shape, param_specs(bare), is_leaf=is_param_spec)
    expected = logits(cfg, params)
    np.testing.assert_allclose(logits(bare, merged), expected, atol=1e-5 * np.abs(expected).max())
    # And every adapter matters.
    for name in cfg.lora_targets:
        without = params | {"layers": params["layers"] | {f"{name}_b": 0 * params["layers"][f"{name}_b"]}}
        assert np.abs(logits(cfg, without) - expected).max() > 1e-2, name


def test_a_matrix_is_merged_as_in_the_paper(random_params):
    params = random_params(SUBSET)
    a, b = (np.asarray(params["layers"][f"wo_{side}"], np.float64) for side in "ab")
    added = lora.merge(SUBSET, params)["layers"]["wo"] - params["layers"]["wo"]
    assert a.shape == (2, 4, 6, 2)
    np.testing.assert_allclose(added, 7.0 / 2 * np.einsum("lnhr,lrd->lnhd", a, b), atol=1e-5)
    np.testing.assert_array_equal(lora.merge(SUBSET, params)["layers"]["wk"], params["layers"]["wk"])


def test_new_adapters_change_nothing():
    params = jax.jit(lambda: init_params(jax.random.key(0), param_specs(CFG), "float32"))()
    frozen, fresh = split(CFG, params)
    for name in CFG.lora_targets:
        np.testing.assert_array_equal(fresh["layers"][f"{name}_b"], 0)
        assert np.std(fresh["layers"][f"{name}_a"]) > 0.05
    np.testing.assert_array_equal(logits(CFG, params), logits(BARE, frozen))
    jax.tree.map(np.testing.assert_array_equal, lora.merge(CFG, params), frozen)


def test_the_number_of_trainable_parameters_by_hand():
    # Of a layer, with 4 x 6 = 24 query and 2 x 6 = 12 key columns: wq, wk, wv, wo, w_gate, w_up, w_down.
    sides = [16 + 24, 16 + 12, 16 + 12, 24 + 16, 16 + 24, 16 + 24, 24 + 16]
    assert parameter_count(lora.trainable_specs(CFG)) == 2 * 3 * sum(sides)
    assert parameter_count(lora.trainable_specs(SUBSET)) == 2 * 2 * (40 + 40)
    full, base = (parameter_count(param_specs(c)) for c in (CFG, BARE))
    assert full - base == parameter_count(lora.trainable_specs(CFG))
    assert parameter_count(lora.trainable_specs(BARE)) == base  # without adapters, all weights are trained


def test_combine_inverts_the_split(random_params):
    params = random_params(CFG)
    frozen, adapters = split(CFG, params)
    joined = lora.combine(frozen, adapters)
    jax.tree.map(np.testing.assert_array_equal, joined, params)
    assert not set(frozen["layers"]) & set(adapters["layers"])
    assert lora.combine(None, params) is params


# --- a folder for peft ---------------------------------------------------------------------------------------------


def write_folders(path, cfg, params):
    """Folders of the base model and of the adapters of a tiny model."""
    folders = epath.Path(path) / "base", epath.Path(path) / "adapters"
    base, adapters = split(cfg, params)
    bare = replace(cfg, lora_rank=0)
    for folder in folders:
        folder.mkdir()
    (folders[0] / "config.json").write_text(json.dumps(write_config(bare, None, "float32")))
    hf.save(folders[0], bare, base, "float32")
    peft.save(folders[1], cfg, adapters, "float32", peft.base_model(str(folders[0])))
    return folders


@pytest.mark.parametrize("cfg", [CFG, SUBSET], ids=["all", "subset"])
def test_the_factors_of_a_folder_add_up_to_the_merged_matrices(cfg, random_params, tmp_path):
    params = random_params(cfg)
    base, adapters = (load_file(next(f.glob("*.safetensors"))) for f in write_folders(tmp_path, cfg, params))
    (tmp_path / "merged").mkdir()
    hf.save(epath.Path(tmp_path / "merged"), replace(cfg, lora_rank=0), lora.merge(cfg, params), "float32")
    for name, merged in load_file(tmp_path / "merged" / hf.SINGLE_FILE).items():
        prefix = "base_model.model." + name.removesuffix(".weight")
        a, b = (adapters.pop(f"{prefix}.lora_{side}.weight", None) for side in "AB")
        if a is None:
            np.testing.assert_array_equal(merged, base[name])
        else:
            added = 7.0 / cfg.lora_rank * np.float64(b) @ np.float64(a)
            assert np.abs(added).max() > 0.1
            np.testing.assert_allclose(merged, base[name] + added, atol=1e-5, err_msg=name)
    assert not adapters


def test_the_folder_has_pefts_names_and_shapes(random_params, tmp_path):
    folder = write_folders(tmp_path, SUBSET, random_params(SUBSET))[1]
    tensors = load_file(folder / "adapter_model.safetensors")
    # D = 16 inputs, rank 2, 4 heads of size 6.
    q, o = ({side: (2, n) if side == "A" else (m, 2) for side in "AB"} for m, n in ((24, 16), (16, 24)))
    assert {name: x.shape for name, x in tensors.items()} == {
        f"base_model.model.model.layers.{layer}.self_attn.{matrix}.lora_{side}.weight": shapes[side]
        for layer in (0, 1)
        for matrix, shapes in (("q_proj", q), ("o_proj", o))
        for side in "AB"
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    expected = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 7, "fan_in_fan_out": False}
    assert config | expected == config
    assert (config["target_modules"], config["base_model_name_or_path"]) == (["q_proj", "o_proj"], f"{tmp_path}/base")


def test_the_base_model_is_named_as_peft_looks_for_it():
    assert peft.base_model("hub:meta/llama@93efa2f") == ("meta/llama", "93efa2f")
    assert peft.base_model("models/llama") == ("models/llama", None)
    assert peft.base_model("") == (None, None)  # trained in the run itself
    assert [peft.base_model(init).hub_id for init in ("hub:a/b@c", "a/b@c", "a/b", "")] == ["a/b", "a/b", None, None]


QWEN2 = replace(CFG, attention_bias=True, tie_embeddings=False)


@pytest.mark.parametrize("cfg", [CFG, SUBSET, QWEN2], ids=["all", "subset", "qwen2"])
def test_peft_gives_the_logits_of_the_merged_model(cfg, random_params, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    library = pytest.importorskip("peft")
    params = random_params(cfg)
    base, adapters = write_folders(tmp_path, cfg, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = np.asarray(logits(replace(cfg, lora_rank=0), lora.merge(cfg, params)))
    with torch.no_grad():
        assert np.abs(model(torch.tensor(TOKENS).long()).logits.numpy() - expected).max() > 0.1
        adapted = library.PeftModel.from_pretrained(model, adapters)
        actual = adapted(torch.tensor(TOKENS).long()).logits.numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


# --- training ------------------------------------------------------------------------------------------------------


def stepped(cfg, frozen, adapters, loss_fn, batch):
    """State and metrics after a step of SGD at rate 1, which moves the parameters by the gradient."""
    mesh, optimizer = make_mesh(), optax.sgd(1.0)
    of_params = param_shardings(lora.trainable_specs(cfg), mesh)
    shardings = trainer.state_shardings(optimizer, adapters, of_params, mesh)
    state = trainer.TrainState(jnp.int32(0), jax.tree.map(jnp.copy, adapters), optimizer.init(adapters))
    update = trainer.make_update(loss_fn, optimizer, shardings, mesh)
    return update(jax.device_put(state, shardings), batch, jax.random.key(0), frozen)


def test_only_the_adapters_get_a_gradient_and_it_follows_from_that_of_the_matrix(random_params):
    frozen, adapters = split(CFG, random_params(CFG))
    settings = SimpleNamespace(epochs=1, seq_len=32, batch_size=4, grad_accum_steps=2)
    batch = sft.make_batch_fn(TEXTS, settings, 3, make_mesh(), CFG)[1](0)
    before = jax.tree.map(lambda x: np.asarray(x).tobytes(), frozen)
    state, metrics = stepped(CFG, frozen, adapters, sft.loss_fn(Decoder(CFG)), batch)
    assert jax.tree.map(lambda x: np.asarray(x).tobytes(), frozen) == before
    assert jax.tree.structure(state.params) == jax.tree.structure(adapters)
    actual = jax.tree.map(np.subtract, adapters, state.params)["layers"]

    # Of the merged model, all of whose weights are trained, a matrix has the gradient G; A has s G B^T, B has s A^T G.
    merged = lora.merge(CFG, lora.combine(frozen, adapters))
    other, same = stepped(BARE, None, merged, sft.loss_fn(Decoder(BARE)), batch)
    np.testing.assert_allclose(metrics["loss"], same["loss"], rtol=1e-5)
    gradient = jax.tree.map(np.subtract, merged, other.params)["layers"]
    for name, inputs in MATRICES.items():
        a, b, g = (
            np.asarray(x, np.float64)
            for x in (adapters["layers"][f"{name}_a"], adapters["layers"][f"{name}_b"], gradient[name])
        )
        for layer in range(2):
            outward = range(1, b.ndim - 1)
            of_a = 7 / 3 * np.tensordot(g[layer], b[layer], (range(inputs, g.ndim - 1), outward))
            of_b = 7 / 3 * np.tensordot(a[layer], g[layer], (range(inputs), range(inputs)))
            assert min(np.abs(of_a).max(), np.abs(of_b).max()) > 1e-3, name
            np.testing.assert_allclose(actual[f"{name}_a"][layer], of_a, atol=2e-5, err_msg=name)
            np.testing.assert_allclose(actual[f"{name}_b"][layer], of_b, atol=2e-5, err_msg=name)


def test_the_first_dpo_loss_with_adapters_is_log_2(random_params):
    params = random_params(SUBSET)
    model, settings = Decoder(SUBSET), dpo_settings(replay_weight=0.0)
    reference = dpo.reference_logprobs(model, params, PAIRS, 4, make_mesh())
    batch = dpo.make_batch_fn(PAIRS, reference, [], settings, 3, make_mesh(), SUBSET)[1](0)
    _, metrics = stepped(SUBSET, *split(SUBSET, params), dpo.loss_fn(model, settings), batch)
    assert float(metrics["dpo"]) == pytest.approx(math.log(2), abs=1e-5)
    assert float(metrics["grad_norm"]) > 1e-2


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"optimizer.name": "muon"}, r"lora\.rank\b.*\b4\b.*optimizer\.name\b.*'muon'.*\badamw\b"),
        ({"lora.targets": ("wq", "wx")}, r"lora\.targets\b.*'wq, wx'.*\bwq, .*, w_down\b.*'wx'"),
        ({"lora.targets": ()}, r"lora\.rank\b.*\b4\b.*lora\.targets\b.*lora\.rank\b.*\b0\b"),
        ({"lora.rank": -1}, r"lora\.rank\b.*-1\b.*\b0\b"),
    ],
)
def test_invalid_adapter_settings_are_refused(changed, facts):
    c = config.get_config("micro")
    c.update_from_flattened_dict({"lora.rank": 4, "optimizer.name": "adamw"})
    validate(c, 1)
    c.update_from_flattened_dict(changed)
    with pytest.raises(config.ConfigError, match=facts):
        validate(c, 1)


# --- a run ---------------------------------------------------------------------------------------------------------

# Random judge, and prompts from the toy world, so that there are pairs after a short training.
OPTIONS = {
    "lora.rank": 4,
    "optimizer.name": "adamw",
    "pretrain.lr": 5e-3,
    "pretrain.epochs": 20.0,
    "sft.lr": 2e-2,
    "sft.epochs": 4.0,
    "judge.kind": "random",
    "judge.max_new_tokens": 8,
    "prompts.writer": "world",
    "data.judge_eval_prompts": 1,
    "data.heldout_prompts": 2,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run to M2 with adapters."""
    path = tmp_path_factory.mktemp("lora") / "run"
    run(path, 2, *[f"--config.{name}={value}" for name, value in OPTIONS.items()])
    return path


@pytest.fixture(scope="module")
def lora_run(workdir):
    return open_run(str(workdir))


def size(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def names(tree):
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.slow
def test_a_checkpoint_after_m0_has_only_adapters(workdir, lora_run):
    expected = {f"['layers']['{matrix}_{side}']" for matrix in MATRICES for side in "ab"}
    for model in ("m1", "m2"):
        assert names(ocp.metadata(lora_run.workdir / model / "checkpoint").metadata) == expected
        assert names(lora_run.models.load_trainable(model)) == expected
        assert size(workdir / model / "checkpoint") < size(workdir / "m0" / "checkpoint") / 2
    assert not names(ocp.metadata(lora_run.workdir / "m0" / "checkpoint").metadata) & expected


@pytest.mark.slow
def test_m2_starts_from_m1s_adapters_with_m1_as_the_reference(lora_run, workdir, tmp_path, monkeypatch):
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "m2" / "checkpoint")
    (tmp_path / "run" / "m2" / "manifest.json").unlink()
    given = {}

    class Stopped(Exception):
        pass

    def fit(state, update, batch_at, steps, lr_schedule, key, options, frozen):
        given.update(state=state, batch=batch_at(0), frozen=frozen)
        raise Stopped

    monkeypatch.setattr(training.trainer, "fit", fit)
    with pytest.raises(Stopped):
        dpo_stage.dpo(open_run(str(tmp_path / "run")), "m2")
    m0, m1 = lora_run.models.load_trainable("m0"), lora_run.models.load_trainable("m1")
    jax.tree.map(np.testing.assert_array_equal, given["state"].params, m1)
    # They are zero in new adapters.
    assert all(np.abs(m1["layers"][f"{name}_b"]).max() > 1e-3 for name in MATRICES)
    jax.tree.map(np.testing.assert_array_equal, given["frozen"], m0)
    assert int(given["state"].step) == 0

    arrays = {name: x[0] for name, x in given["batch"]["arrays"].items()}
    model, params = Decoder(lora_run.models.model_config()), lora_run.models.load_params("m1")
    logprobs = jax.jit(partial(dpo.pair_logprobs, model))(params, arrays)
    np.testing.assert_allclose(arrays["reference"], logprobs, rtol=1e-4)


@pytest.mark.slow
def test_a_models_parameters_are_the_merged_ones(lora_run):
    models = lora_run.models
    bare, adapted = models.model_config(), models.model_config(adapters=True)
    assert (bare.lora_rank, adapted.lora_rank) == (0, 4)
    base, merged = models.load_trainable("m0"), models.load_params("m2")
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    expected = logits(adapted, lora.combine(base, models.load_trainable("m2")))
    np.testing.assert_allclose(logits(bare, merged), expected, atol=1e-4)
    assert np.abs(logits(bare, models.load_params("m1")) - expected).max() > 1e-3


@pytest.mark.slow
def test_merging_does_not_donate_its_argument(workdir):
    run = open_run(str(workdir))
    run.cfg.lora.rank = run.cfg.model.dim  # a factor as large as a matrix, whose memory a result could reuse
    declared = lora.adapter_specs(run.models.model_config(adapters=True))
    trained = run.models.init_params(lambda key: init_params(key, declared, "float32"), declared, "m1")
    run.models.merge_lora(trained)
    assert not any(x.is_deleted() for x in jax.tree.leaves(trained))


@pytest.mark.slow
def test_the_exported_folder_is_the_merged_model(lora_run, workdir, tmp_path):
    assert ended(export, f"--workdir={workdir}", "--model=m2", f"--out={tmp_path}/out") == (0, "")
    with safe_open(tmp_path / "out" / hf.SINGLE_FILE, "numpy") as stored:
        assert set(stored.keys()) == set(hf.expected_tensors(lora_run.models.model_config()))
        down = stored.get_tensor("model.layers.1.mlp.down_proj.weight")
    np.testing.assert_array_equal(down, lora_run.models.load_params("m2")["layers"]["w_down"][1].T)
    assert np.abs(down - lora_run.models.load_trainable("m0")["layers"]["w_down"][1].T).max() > 1e-3


@pytest.fixture(scope="module")
def folders(workdir, tmp_path_factory):
    """M2's adapters, the base model, and M2 as a whole model, exported."""
    path, found = tmp_path_factory.mktemp("peft"), []
    for number, (model, form) in enumerate((("m2", "peft"), ("m0", "hf"), ("m2", "hf"))):
        found.append(path / f"{number}")
        options = [f"--workdir={workdir}", f"--model={model}", f"--format={form}", f"--out={found[-1]}"]
        assert ended(export, *options) == (0, "")
    return found


@pytest.mark.slow
def test_the_adapters_of_the_last_round_hold_all_that_training_changed(folders):
    adapters, base, whole = (load_file(next(f.glob("*.safetensors"))) for f in folders)
    changed = {name for name in whole if not np.array_equal(whole[name], base[name])}
    assert len(changed) == len(adapters) / 2 == 2 * len(MATRICES)
    for name in changed:
        prefix = "base_model.model." + name.removesuffix(".weight")
        a, b = (np.float64(adapters[f"{prefix}.lora_{side}.weight"]) for side in "AB")
        np.testing.assert_allclose(whole[name], base[name] + 16 / 4 * b @ a, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_the_folder_of_adapters_is_complete(folders):
    adapters, _, whole = folders
    names = {path.name for path in adapters.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= names
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (adapters / name).read_bytes() == (whole / name).read_bytes()
    assert not names & {"config.json", "Modelfile", hf.SINGLE_FILE}
    card = (adapters / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert_mentions(card, "rank 4", "alpha 16", "PeftModel", "m0")
    assert (whole / "README.md").read_text().startswith("---\nlibrary_name: transformers\n")


@pytest.mark.slow
def test_the_base_model_has_no_adapters_to_export(workdir, tmp_path):
    code, err = ended(export, f"--workdir={workdir}", "--model=m0", "--format=peft", f"--out={tmp_path}/out")
    assert (code, err.count("\n")) == (2, 1)
    assert_mentions(err, "m0", "--format=hf")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_peft_loads_the_exported_adapters_with_equal_logits_and_ids(folders, lora_run):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    library = pytest.importorskip("peft")
    adapters, base, whole = folders
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapters)
    message = [{"role": "user", "content": "Name five birds."}]
    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    assert ids == lora_run.models.chat.prompt_ids("Name five birds.")
    base, whole = (transformers.AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (base, whole))
    with torch.no_grad():
        expected = whole(torch.tensor([ids])).logits
        assert (base(torch.tensor([ids])).logits - expected).abs().max() > 1e-2
        actual = library.PeftModel.from_pretrained(base, adapters)(torch.tensor([ids])).logits
    np.testing.assert_allclose(actual, expected, atol=1e-5)
