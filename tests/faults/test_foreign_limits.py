"""What a foreign tokenizer or a model's size may cost: panics, aborts, loops and memory are refused on one line."""

import json
import time

import hf_folders
import jax
import pytest
from conftest import arguments, assert_mentions, ended, on_eight_devices
from etils import epath
from families import EXPERTS
from tokenizers import Tokenizer, models, pre_tokenizers

from selfreward_jax import main
from selfreward_jax.cli import check
from selfreward_jax.config import ConfigError, InputError
from selfreward_jax.llm import capacity, hf, tokenizer, worker_process
from selfreward_jax.llm.chat import builtin_template
from selfreward_jax.llm.hf_config import ModelFormatError, read_config
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import is_param_spec, param_specs, parameter_count
from selfreward_jax.parallel.device_memory import device_memory
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import param_shardings, replicated

REGEX = {"type": "Split", "behavior": "Isolated", "invert": False}
GROW = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}
FAULTS = {
    "a panic while it is read": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "an abort": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
    "a panic while it encodes": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a panic while it decodes": {"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 2**64 - 1}},
    "a pattern that backtracks": {"pre_tokenizer": REGEX | {"pattern": {"Regex": "(a+)+$"}}},
    "a pattern that takes long": {"pre_tokenizer": REGEX | {"pattern": {"Regex": "a*a*a*\\d|."}}},
    "a text that grows": {"normalizer": {"type": "Sequence", "normalizers": [GROW] * 20}},
    "many ids of a short text": {"normalizer": {"type": "Prepend", "prepend": "a" * 200_000}},
}


def tokenizer_json(**changed):
    made = Tokenizer(models.BPE({chr(i): i - 32 for i in range(32, 127)}, []))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["</s>"])
    return json.dumps(json.loads(made.to_str()) | changed)


def write_tokenizer(folder, **changed):
    (folder / "tokenizer.json").write_text(tokenizer_json(**changed))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return epath.Path(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tokenizer_that_fails_is_refused_when_it_is_read(fault, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(worker_process, "MAX_SECONDS", 0.8)
    monkeypatch.setattr(worker_process, "MAX_MEMORY", 1 << 28)
    start = time.monotonic()
    with pytest.raises(ModelFormatError) as caught:
        read_chat(write_tokenizer(tmp_path, **FAULTS[fault]))
    assert time.monotonic() - start < 5
    assert_mentions(str(caught.value), tmp_path / "tokenizer.json")
    assert str(caught.value).isprintable()
    assert capfd.readouterr().err == ""


def test_a_panic_on_a_later_text_is_one_line():
    broken = tokenizer.TokenizerJson(tokenizer_json(**FAULTS["a panic while it encodes"]))
    with pytest.raises(InputError, match="chunk size"):
        broken.encode("a b")


def test_other_exceptions_pass_through():
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenizer._call(stopped)


def test_padding_and_truncation_of_a_tokenizer_are_ignored(tmp_path):
    plain = read_chat(write_tokenizer(tmp_path))
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Left", "pad_to_multiple_of": 10**12, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "x"}
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 1}
    padded = read_chat(write_tokenizer(tmp_path, padding=padding, truncation=truncation))
    assert padded.example("a b c", "d e f") == plain.example("a b c", "d e f")


def test_a_tokenizer_is_tried_once(tmp_path, monkeypatch):
    folder = write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(builtin_template("plain"))  # it needs no process
    read_chat(folder)
    monkeypatch.setattr(worker_process, "_work", None)
    assert read_chat(folder).eos == "</s>"


def test_special_tokens_have_the_ids_of_the_library():
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": 10**9, "content": "A", **flags}, {"id": 1, "content": "</s>", **flags}]
    text = tokenizer_json(added_tokens=added)
    read = tokenizer.TokenizerJson(text)
    assert read.special_tokens == {name: Tokenizer.from_str(text).token_to_id(name) for name in ("A", "</s>")}
    assert max(read.special_tokens.values()) < read.vocab_size


def test_ids_beyond_a_sentencepiece_vocabulary_have_no_text(finished_run):
    sp = tokenizer.SentencePiece((finished_run / "tokenizer" / "tokenizer.model").read_bytes())
    ids = sp.encode("the judge")
    assert sp.decode([*ids, sp.vocab_size, 10**6]) == sp.decode(ids)


CONFIGS = {
    "a template that is a number": ("tokenizer_config.json", {"chat_template": 5}),
    "a template that is no text, by its name": (
        "tokenizer_config.json",
        {"chat_template": [{"name": [], "template": "a"}, {"name": "default", "template": {"a": 1}}, 3]},
    ),
    "a placeholder that no message has": ("tokenizer_config.json", {"chat_template": f"\ue000{'9' * 5000}\ue001"}),
    "a million placeholders": ("tokenizer_config.json", {"chat_template": "{{ '\ue0000\ue001' * 60000 }}"}),
    "a template that writes too much": ("tokenizer_config.json", {"chat_template": "{{ 'x' * 300000 }}"}),
    "an error with escape sequences": (
        "tokenizer_config.json",
        {"chat_template": "{{ raise_exception('a\n\x1b[2J' * 2000) }}"},
    ),
    "a vocabulary that is no number": ("config.json", {"vocab_size": "48"}),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_what_a_tokenizers_files_hold_is_checked(fault, tmp_path):
    folder = write_tokenizer(tmp_path)
    file, fields = CONFIGS[fault]
    (tmp_path / file).write_text(json.dumps({"eos_token": "</s>"} | fields))
    with pytest.raises(ModelFormatError) as caught:
        read_chat(folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500


# --- memory -----------------------------------------------------------------------------------------------------------

TOO_LARGE = {
    "layers": ({"model.num_layers": 10_000, "model.dim": 1 << 16}, "model.num_layers 10,000", "model.dim 65,536"),
    "feed-forward": ({"model.mlp_dim": 1 << 20, "model.dim": 1 << 18}, "model.mlp_dim 1,048,576", "model.dim 262,144"),
    "heads": ({"model.num_heads": 1 << 20, "model.dim": 1 << 16}, "model.num_heads 1,048,576", "model.dim 65,536"),
}


@pytest.mark.parametrize("fields", TOO_LARGE)
@pytest.mark.parametrize("command", [main, check])
def test_settings_of_a_model_beyond_the_memory_are_refused(command, fields, tmp_path):
    changed, *named = TOO_LARGE[fields]
    options = [f"--config.{name}={value}" for name, value in changed.items()]
    code, line = ended(command, *arguments(tmp_path / "run", 2, *options))
    assert (code, line.count("\n")) == (2, 1), line
    assert_mentions(line, *named, "parallel.fsdp")
    assert not (tmp_path / "run").exists()


def shapes(tmp_path, **changed):
    """The parameters of a folder with other fields in its config.json, and their shardings; no memory is taken."""
    cfg, _ = read_config(epath.Path(hf_folders.write(tmp_path, "llama2", **changed)))
    return param_specs(cfg), param_shardings(param_specs(cfg), make_mesh())


def test_the_largest_dimensions_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "device_memory", lambda: (1 << 20, "a device"))
    specs, shardings = shapes(tmp_path, vocab_size=1 << 20)
    for from_folder, names in ((False, ("tokenizer.vocab_size", "model.dim")), (True, ("vocab_size", "hidden_size"))):
        with pytest.raises(ConfigError) as caught:
            capacity.check_capacity(specs, shardings, "float32", from_folder)
        assert_mentions(str(caught.value), f"{names[0]} 1,048,576", f"{names[1]} 32")


@pytest.mark.parametrize("have", [0, 200_000])
def test_what_fits_or_is_not_known_is_not_refused(have, tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "device_memory", lambda: (have, "a device"))
    specs, shardings = shapes(tmp_path)
    assert 100_000 < 4 * parameter_count(specs) <= 200_000
    capacity.check_capacity(specs, shardings, "float32")
    monkeypatch.setattr(capacity, "device_memory", lambda: (4 * parameter_count(specs) - 1, "a device"))
    with pytest.raises(ConfigError):
        capacity.check_capacity(specs, shardings, "float32")
    capacity.check_capacity(specs, shardings, "bfloat16")


def test_a_folder_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "make_array_from_callback", None)
    large = {"vocab_size": 10_000_000, "hidden_size": 1 << 20, "num_hidden_layers": 10_000}
    for changed, have, error, names in (
        (large, 1 << 40, ModelFormatError, ("model.embed_tokens.weight",)),  # its files are smaller
        ({}, 1 << 10, ConfigError, ("intermediate_size 56", "hidden_size 32", "num_hidden_layers 3")),
    ):
        folder = epath.Path(hf_folders.write(tmp_path, "llama2", **changed))
        monkeypatch.setattr(capacity, "device_memory", lambda have=have: (have, "a device"))
        cfg, _ = read_config(folder)
        with pytest.raises(error) as caught:
            hf.load(folder, cfg, param_shardings(param_specs(cfg), make_mesh()))
        assert_mentions(str(caught.value), *names)


SHARDED = """
import jax
from selfreward_jax.llm import capacity
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import param_specs
from selfreward_jax.parallel.device_memory import device_memory
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import param_shardings, replicated

specs = param_specs(DecoderConfig(256, 64, 2, 8, 8, 8, 128))
whole = 4 * capacity.parameter_count(specs)
print(device_memory()[0])
capacity.device_memory = lambda: (whole // 6, "a device")
for fsdp in (8, 1):
    try:
        capacity.check_capacity(specs, param_shardings(specs, make_mesh(fsdp)), "float32")
        print("fits")
    except capacity.ConfigError:
        print("refused")
"""


@pytest.mark.slow  # a process of its own
def test_each_device_holds_its_part_and_cpu_devices_share_the_memory():
    eighth, *fits = on_eight_devices(SHARDED).split()
    assert int(eighth) == device_memory()[0] * jax.local_device_count() // 8
    assert fits == ["fits", "refused"]


@pytest.mark.parametrize("family", [{}, EXPERTS, {"lora_rank": 4, "lora_targets": ("wq",)}])
def test_every_large_dimension_has_a_name(family, monkeypatch):
    """Whichever parameter is the largest, the message says what makes it large."""
    shapes = {"vocab_size": 48, "dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    specs = param_specs(DecoderConfig(**shapes, mlp_dim=24, attention_bias=True, qk_norm="width", **family))
    monkeypatch.setattr(capacity, "device_memory", lambda: (1, "cpu"))
    for spec in jax.tree.leaves(specs, is_leaf=is_param_spec):
        for from_folder in (False, True):
            with pytest.raises(ConfigError) as caught:
                capacity.check_capacity({"w": spec}, {"w": replicated(make_mesh())}, "float32", from_folder)
            assert_mentions(str(caught.value), *spec.shape)
