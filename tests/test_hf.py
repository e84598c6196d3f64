"""Hugging Face folders: the same logits as transformers, bitwise round trips, and inconsistent folders."""

import json
import shutil
from functools import partial
from pathlib import Path

import hf_folders
import jax
import numpy as np
import pytest
import sampling
from conftest import assert_mentions, on_eight_devices
from etils import epath
from safetensors.numpy import load_file, save_file

from selfreward_jax.llm import hf, hub
from selfreward_jax.llm.attention import KVSegment
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.hf_config import ModelFormatError, read_config, write_config
from selfreward_jax.llm.parameters import param_specs
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import param_shardings
from selfreward_jax.runs.loading import load_model

GOLDEN = np.load(Path(__file__).parent / "goldens" / "hf_logits.npz")
STORIES = Path(__file__).parents[2] / "shared" / "data" / "stories260k" / "hf"
CLOSE = {"atol": 1e-4, "rtol": 0}  # on logits of order 10


def read(path, **changed):
    """(config, params) of a folder, in float32 unless changed."""
    cfg, _ = read_config(epath.Path(path))
    cfg = cfg.__class__(**(vars(cfg) | {"param_dtype": "float32"} | changed))
    return cfg, hf.load(epath.Path(path), cfg, param_shardings(param_specs(cfg), make_mesh()))


@pytest.fixture(scope="module", params=hf_folders.FAMILIES)
def model(request, tmp_path_factory):
    return request.param, *read(hf_folders.write(tmp_path_factory.mktemp(request.param), request.param))


@partial(jax.jit, static_argnums=0)
def forward(cfg, params, tokens):
    return Decoder(cfg).apply({"params": params}, tokens)


def test_the_full_forward_equals_transformers(model):
    family, cfg, params = model
    for i, ids in enumerate(hf_folders.tokens()):
        padded = np.pad(ids, (0, max(hf_folders.LENGTHS) - len(ids)))[None]  # no token attends to padding at the end
        logits = forward(cfg, params, padded)[0, : len(ids)]
        np.testing.assert_allclose(logits, GOLDEN[f"{family}/{i}"], **CLOSE)
        assert np.abs(logits).max() > 10


@partial(jax.jit, static_argnums=0)
def prefill(cfg, params, tokens, positions, segments):
    """Logits, keys and values of padded prompts."""
    inputs = {"positions_BT": positions, "segment_ids_BT": segments}
    hidden, kv = Decoder(cfg).apply({"params": params}, tokens, method="hidden_states", **inputs)
    return Decoder(cfg).apply({"params": params}, hidden, method="unembed"), kv


@partial(jax.jit, static_argnums=0)
def decode_token(cfg, params, tokens, positions, k, v, mask, key_positions):
    """Logits, keys and values of one token in each row, which attends to the slots of the mask."""
    inputs = {"positions_BT": positions, "past": [KVSegment(k, v, mask, key_positions)]}
    hidden, kv = Decoder(cfg).apply({"params": params}, tokens, method="hidden_states", **inputs)
    return Decoder(cfg).apply({"params": params}, hidden, method="unembed"), kv


def test_cached_decoding_of_padded_batches_equals_transformers(model):
    """Both texts in one batch: the prompts are prefilled, the other tokens decoded one by one."""
    for side in ("left", "right"):
        assert_decoding_equals_transformers(model, side)


def assert_decoding_equals_transformers(model, side):
    family, cfg, params = model
    texts, shortest_prompt = hf_folders.tokens(), 8
    longest = max(map(len, texts))
    width = shortest_prompt + 4  # the prompts are of 12 and 8 tokens
    lengths = np.array([12, 8])
    offset = width - lengths if side == "left" else np.zeros(2, int)
    tokens = np.zeros((2, width), np.int32)
    for row, text in enumerate(texts):
        tokens[row, offset[row] : offset[row] + lengths[row]] = text[: lengths[row]]
    slots = np.arange(width)
    real = (slots >= offset[:, None]) & (slots < (offset + lengths)[:, None])
    positions = np.clip(slots - offset[:, None], 0, None)
    logits, (k, v) = prefill(cfg, params, tokens, positions, real.astype(np.int32))
    actual = [list(logits[r][real[r]]) for r in (0, 1)]

    # A slot for each new token, after those of the prompts. The content of an unfilled slot must not matter.
    steps = longest - 12
    k = [np.pad(x, ((0, 0), (0, 0), (0, 0), (0, steps)), constant_values=100.0) for x in k]
    v = [np.pad(x, ((0, 0), (0, 0), (0, steps), (0, 0)), constant_values=100.0) for x in v]
    real, positions = (np.pad(x, ((0, 0), (0, steps))) for x in (real, positions))
    for step in range(steps):
        at = (lengths + step)[:, None]
        new = np.array([text[min(n + step, len(text) - 1)] for text, n in zip(texts, lengths, strict=True)])[:, None]
        logits, (new_k, new_v) = decode_token(cfg, params, new, at, k, v, real[:, None, :], positions)
        for layer in range(cfg.num_layers):
            k[layer][..., width + step] = new_k[layer][..., 0]
            v[layer][..., width + step, :] = new_v[layer][..., 0, :]
        real[:, width + step], positions[:, width + step] = True, at[:, 0]
        for row in (0, 1):
            actual[row].append(logits[row, 0])
    for row, text in enumerate(texts):
        np.testing.assert_allclose(np.stack(actual[row][: len(text)]), GOLDEN[f"{family}/{row}"], **CLOSE)


@pytest.mark.parametrize(
    ("family", "stored", "shard_bytes"),
    [
        ("llama32", "float32", 1e9),
        ("qwen2", "float32", 1e9),
        ("qwen3", "float32", 1e9),
        ("qwen2", "bfloat16", 1e9),
        ("qwen3", "float16", 1e9),
        ("llama32", "bfloat16", 9000),
        ("qwen2", "float16", 9000),
        ("qwen3", "float32", 9000),
        ("gemma3", "bfloat16", 1e9),
        ("olmo3", "float32", 1e9),
        ("phi4", "bfloat16", 9000),
    ],
)
def test_saved_bytes_equal_the_loaded_ones(tmp_path, family, stored, shard_bytes):
    given = hf_folders.write(tmp_path / "in", family, stored)
    cfg, params = read(given, param_dtype=stored)
    (out := tmp_path / "out").mkdir()
    hf.save(epath.Path(out), cfg, params, stored, shard_bytes)
    files = sorted(out.glob("*.safetensors"))
    written = {name: x for file in files for name, x in load_file(file).items()}
    wanted = load_file(given / "model.safetensors")
    assert written.keys() == wanted.keys()
    for name, x in wanted.items():
        assert (x.dtype, x.shape, x.tobytes()) == (written[name].dtype, written[name].shape, written[name].tobytes())
    assert (len(files) > 1) == (shard_bytes == 9000)
    raw = hf_folders.FAMILIES[family]
    (out / "config.json").write_text(json.dumps(write_config(cfg, raw, stored)))
    again, back = read(out, param_dtype=stored)
    assert again == cfg
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_every_field_of_both_dialects_survives_a_round_trip(model, tmp_path):
    """Of a model that is trained here, too, if it is of a kind that can be."""
    family, cfg, _ = model
    raw = hf_folders.FAMILIES[family]
    if list(hf_folders.FAMILIES).index(family) > list(hf_folders.FAMILIES).index("qwen3"):
        (tmp_path / "config.json").write_text(json.dumps(write_config(cfg, raw, "float32")))
        assert read_config(epath.Path(tmp_path))[0] == cfg
        return
    made = write_config(cfg, None, "float32")
    if cfg.rope_scaling and cfg.rope_scaling.low_freq_factor:
        assert type(made["rope_scaling"]["original_max_position_embeddings"]) is int  # else transformers warns
    for dialect in (("rope_parameters", "dtype"), ("rope_theta", "rope_scaling", "torch_dtype")):
        kept = {k: v for k, v in made.items() if k not in dialect}
        (tmp_path / "config.json").write_text(json.dumps(kept))
        assert read_config(epath.Path(tmp_path))[0] == cfg


EIGHT = """
import json, sys
import jax, numpy as np
from etils import epath
from selfreward_jax.llm import hf, hub
from selfreward_jax.llm.hf_config import read_config
from selfreward_jax.llm.parameters import param_specs
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import param_shardings

assert jax.device_count() == 8
path = epath.Path(sys.argv[1])
cfg, _ = read_config(path)
fractions, read_tensor = [], hf.SafetensorsFolder.read
def recording_read(self, name, param, shape, index):
    part = read_tensor(self, name, param, shape, index)
    fractions.append(part.size / np.prod(shape))
    return part
hf.SafetensorsFolder.read = recording_read
one, many = (hf.load(path, cfg, param_shardings(param_specs(cfg), make_mesh(f, t))) for f, t in ((1, 1), (4, 2)))
jax.tree.map(np.testing.assert_array_equal, one, many)
wq = many["layers"]["wq"]
assert {s.data.shape for s in wq.addressable_shards} == {(3, 8, 2, 16)}, wq.sharding
print(json.dumps(min(fractions[len(fractions) // 2:])))
"""


def test_loading_on_eight_devices_equals_one_and_reads_only_the_shards(tmp_path):
    folder = hf_folders.write(tmp_path, "qwen3")
    assert json.loads(on_eight_devices(EIGHT, str(folder))) == 1 / 8  # of a matrix split four ways by two


def test_a_slice_of_a_weight_equals_that_slice_of_the_loaded_weight(tmp_path):
    _, params = read(hf_folders.write(tmp_path, "qwen3"))
    folder = hf.SafetensorsFolder(epath.Path(tmp_path))
    cuts = {"wq": (slice(8, 16), slice(2, 4), slice(0, 16)), "wo": (slice(1, 3), slice(0, 16), slice(16, 32))}
    for name, cut in cuts.items():
        param = hf.HF_PARAM_MAP[name]
        part = folder.read(param.name.format(1), param, params["layers"][name].shape[1:], cut)
        np.testing.assert_array_equal(part, params["layers"][name][1][cut])


# --- the real model --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not STORIES.exists(), reason="the shared data are not available")
def test_a_real_model_continues_a_story_as_transformers_does():
    import sentencepiece

    cfg, params = read(STORIES)
    keys = jax.random.split(jax.random.key(0), 1)
    samples = sampling.draw(cfg, params, np.array([[1]]), np.array([1]), keys, 200, temperature=0.0)
    ids = samples.tokens[0].tolist()
    assert ids == STORY
    text = sentencepiece.SentencePieceProcessor(str(STORIES / "tokenizer.model")).decode(ids)
    assert text.startswith("Once upon a time, there was a little girl named Lily.")


# transformers' own greedy continuation of BOS by 200 tokens (tests/goldens/make_hf_story.py).
STORY = json.loads((Path(__file__).parent / "goldens" / "hf_story.json").read_text())


# --- inconsistent folders---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return hf_folders.write(tmp_path / "model", "llama2")


def refused(folder, *facts):
    with pytest.raises(ModelFormatError) as error:
        read(folder)
    assert "\n" not in str(error.value)
    assert_mentions(str(error.value), *facts)


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", ".safetensors", 3]
)
def test_an_index_that_points_elsewhere_is_refused(folder, file):
    (folder / hf.INDEX_FILE).write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
    refused(folder, "model.norm.weight", repr(file), hf.INDEX_FILE)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}'])
def test_a_malformed_index_is_refused(folder, text):
    (folder / hf.INDEX_FILE).write_text(text)
    refused(folder, folder / hf.INDEX_FILE)


def test_an_index_that_names_the_wrong_file_is_refused(folder):
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    rewrite(folder, lambda t: t.pop("model.norm.weight"))
    where = dict.fromkeys(load_file(folder / "other.safetensors"), "model.safetensors")
    (folder / hf.INDEX_FILE).write_text(json.dumps({"weight_map": where}))
    refused(folder, "model.norm.weight", "model.safetensors")


@pytest.mark.parametrize("cut", [1, 1000, 20_000])
def test_a_truncated_file_is_refused(folder, cut):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    refused(folder, path)


@pytest.mark.parametrize("damage", ["beyond", "overlap", "shape", "json", "length"])
def test_a_wrong_header_is_refused(folder, damage):
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    entry = header["model.norm.weight"]
    if damage == "beyond":
        entry["data_offsets"] = [len(raw), len(raw) + 128]
    if damage == "overlap":
        entry["data_offsets"] = [0, 128]
    if damage == "shape":
        entry["shape"] = [31]
    text = b"{" * size if damage == "json" else json.dumps(header).encode()
    announced = 1 << 60 if damage == "length" else len(text)
    path.write_bytes(announced.to_bytes(8, "little") + text + raw[8 + size :])
    refused(folder, path)


def test_the_error_names_a_missing_tensor(folder):
    rewrite(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    refused(folder, "model.layers.1.mlp.up_proj.weight")


def test_the_error_for_a_missing_head_names_the_setting(folder):
    rewrite(folder, lambda t: t.pop("lm_head.weight"))
    refused(folder, "lm_head.weight", "tie_word_embeddings")


def test_the_error_names_an_extra_tensor(folder):
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)}))
    refused(folder, "model.layers.0.self_attn.q_proj.bias")


def test_unused_tensors_of_old_folders_are_ignored(folder):
    before = read(folder)[1]
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}))
    jax.tree.map(np.testing.assert_array_equal, read(folder)[1], before)


def test_the_error_for_a_wrong_shape_has_both_shapes(folder):
    rewrite(folder, lambda t: t.update({"model.norm.weight": np.ones(31, np.float32)}))
    refused(folder, "model.norm.weight", "(31,)", "(32,)")


def test_a_wrong_dtype_is_refused(folder):
    rewrite(folder, lambda t: t.update({"model.norm.weight": np.ones(32, np.int8)}))
    refused(folder, "model.norm.weight", "I8", "BF16")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_error_names_a_weight_that_is_not_finite(folder, bad):
    rewrite(folder, lambda t: t["model.layers.2.self_attn.o_proj.weight"].__setitem__((3, 4), bad))
    refused(folder, "model.layers.2.self_attn.o_proj.weight")


def test_a_folder_with_only_a_pickle_is_refused_without_reading_it(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'false'\ntR.")
    refused(folder, "pytorch_model.bin", "safetensors")


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["'GPT2LMHeadModel'", "LlamaForCausalLM", "Qwen3ForCausalLM"]),
        ({"architectures": None}, ["'architectures'"]),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4}}, ["'longrope'", "default, linear, llama3, yarn"]),
        ({"rope_scaling": {"rope_type": "yarn"}}, ["'yarn'", "factor"]),
        ({"layer_types": ["full_attention", "full_attention", "none"]}, ["layer_types", "'sliding_attention'", 3]),
        ({"layer_types": ["full_attention"] * 2}, ["layer_types", 3]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, ["'llama3'", "low_freq_factor"]),
        ({"hidden_act": "gelu"}, ["'gelu'", "silu"]),
        ({"attention_bias": True}, ["attention_bias", "LlamaForCausalLM"]),
        ({"num_hidden_layers": "three"}, ["num_hidden_layers", "'three'"]),
        ({"hidden_size": None}, ["hidden_size", "None"]),
        ({"architectures": [["LlamaForCausalLM"]]}, ["LlamaForCausalLM", "Qwen3ForCausalLM"]),
        ({"num_key_value_heads": 0}, ["num_key_value_heads", "0"]),
        ({"head_dim": 8.5}, ["head_dim", "8.5"]),
        ({"vocab_size": True}, ["vocab_size", "True"]),
        ({"sliding_window": "all"}, ["sliding_window", "'all'"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "'yes'"]),
        ({"rms_norm_eps": "small"}, ["rms_norm_eps", "'small'"]),
        ({"rope_theta": -1}, ["rope_theta", "-1"]),
        ({"rope_scaling": 4}, ["rope_scaling", "4"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": "four"}}, ["'linear'", "four"]),
        ({"rope_scaling": {"rope_type": ["linear"], "factor": 4}}, ["['linear']"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}, ["'linear'", "factor", "nan"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, ["'linear'", "factor", "0"]),
        ({"rope_theta": 10**400}, ["rope_theta", "1329 bits"]),
        ({"num_hidden_layers": 10**12}, ["num_hidden_layers", 10**12, "10,000"]),
        ({"vocab_size": 10**12}, ["vocab_size", 10**12, "10,000,000"]),
        ({"num_attention_heads": 60_000, "num_key_value_heads": 1}, ["num_attention_heads", "60000", "hidden_size"]),
        ({"max_position_embeddings": "all"}, ["max_position_embeddings", "'all'"]),
        ({"num_key_value_heads": 3}, ["4", "3"]),
        ({"torch_dtype": "int8"}, ["'int8'", "bfloat16"]),
    ],
)
def test_an_unsupported_config_is_refused_with_the_supported_values(tmp_path, changed, facts):
    refused(hf_folders.write(tmp_path, "llama2", **changed), "config.json", *facts)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8"])
def test_quantised_weights_are_refused_by_their_name(tmp_path, method):
    refused(hf_folders.write(tmp_path, "llama2", quantization_config={"quant_method": method}), "quantised", method)


def test_adapters_alone_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base", "r": 4}')
    refused(tmp_path, "owner/base", "merge_and_unload")
    for load in (hub.resolve_model_dir, load_model):
        with pytest.raises(ModelFormatError, match=r"owner/base.*merge_and_unload"):
            load(str(tmp_path))


def test_weights_beyond_float16_are_told_from_damaged_ones(tmp_path):
    folder = hf_folders.write(tmp_path, "llama2")
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": np.full(32, 1e6, np.float32)}))
    cfg, _ = read_config(epath.Path(folder))
    assert cfg.param_dtype == "float16"
    with pytest.raises(ModelFormatError, match=r"model\.norm\.weight.*65504.*float16.*torch_dtype"):
        hf.load(epath.Path(folder), cfg, param_shardings(param_specs(cfg), make_mesh()))
    assert np.isfinite(read(folder)[1]["norm"]).all()  # in float32


def renamed(tensors, family):
    """The tensors as other programs name them."""
    yield "without a prefix", {name.removeprefix("model."): x for name, x in tensors.items()}
    for prefix in ("language_model.model.", "model.language_model."):
        seen = {f"{prefix}{name.removeprefix('model.')}": x for name, x in tensors.items()}
        yield prefix, seen | {"vision_tower.patch.weight": np.zeros((2, 2), np.float32)}
    if family == "smollm2":
        yield "tied head", {name.replace("model.embed_tokens", "lm_head"): x for name, x in tensors.items()}


@pytest.mark.parametrize("family", ["smollm2", "gemma3"])
def test_other_names_of_tensors_are_read(family, tmp_path):
    folder = hf_folders.write(tmp_path, family)
    _, expected = read(folder)
    for _, tensors in renamed(load_file(folder / "model.safetensors"), family):
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        jax.tree.map(np.testing.assert_array_equal, read(folder)[1], expected)


def test_the_text_part_of_a_model_that_sees_images(tmp_path):
    """Its config.json leaves out what the class fills in, and names the text part apart."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    text |= {"model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(outer | {"vision_config": {}, "eos_token_id": [1, 106]}))
    cfg, raw = read_config(epath.Path(tmp_path))
    assert (cfg.dim, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.vocab_size) == (2560, 8, 4, 256, 262_208)
    assert [kind.window for kind in cfg.layer_kinds[:6]] == [1024] * 5 + [None]
    assert [kind.rope_theta for kind in cfg.kinds] == [1e4, 1e6]
    assert [kind.rope_scaling and kind.rope_scaling.factor for kind in cfg.kinds] == [None, 8.0]
    assert raw["architectures"] == ["Gemma3ForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(write_config(cfg, raw, "bfloat16")))
    assert read_config(epath.Path(tmp_path))[0] == cfg


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_config_that_is_not_a_json_object_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_a_missing_folder_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "config.json", "nowhere")
