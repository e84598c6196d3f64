"""Any JSON in the files of a model folder or of a run is read, or refused on one line; no traceback, no wait."""

import copy
import json
import shutil
import time

import hf_folders
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfreward_jax.config import InputError, default_config, from_stored
from selfreward_jax.llm.hf_config import ModelFormatError, read_config
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.llm.parameters import param_specs

FIELDS = (
    "rope_scaling rope_parameters sliding_window layer_types quantization_config eos_token_id bos_token_id head_dim "
    "max_window_layers use_sliding_window chat_template added_tokens_decoder extra_special_tokens tokenizer_class"
).split()
LEAVES = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 10**12, 10**400, -(10**400)])
    | st.text(max_size=20)
    | st.sampled_from(["</s>", "silu", "bfloat16", "llama3", "linear", "yarn", "{{ x }}", "{% for", "\ud800"])
)
KEYS = st.sampled_from(["type", "rope_type", "factor", "content", "name", "template"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@st.composite
def changed(draw, value):
    """The value with some fields replaced, removed or added, at any depth."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        node, key = value, draw(st.sampled_from([*sorted(value), *FIELDS]))
        while isinstance(node.get(key), dict) and node[key] and draw(st.booleans()):
            node = node[key]
            key = draw(st.sampled_from(sorted(node)))
        if draw(st.integers(0, 9)):
            node[key] = draw(VALUES)
        else:
            node.pop(key, None)
    return value


def read_or_refused(function):
    """Calls it. A refusal must be ours, on one line, and within 5 s."""
    start, refusal = time.monotonic(), ""
    try:
        function()
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert len(refusal) < 2000
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("family", ["llama2", "llama3", "qwen2", "qwen3", "mistral"])
@ANY
@given(data=st.data())
def test_any_config_of_a_model(family, tmp_path, data):
    if not (tmp_path / "config.json").exists():
        hf_folders.write(tmp_path, family)
        shutil.copy(tmp_path / "config.json", tmp_path / "original.json")
    original = json.loads((tmp_path / "original.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data.draw(changed(original))))
    read_or_refused(lambda: param_specs(read_config(epath.Path(tmp_path))[0]))


FILES = {
    "tokenizer_config.json": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": {"content": "<pad>"}},
    "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 3], "max_new_tokens": 5},
    "config.json": {"bos_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.parametrize("field", ["bos_token", "pad_token", "additional_special_tokens"])
def test_half_of_a_surrogate_pair_is_no_special_token(field, finished_run, tmp_path):
    for file in ("tokenizer.model", "chat_template.jinja"):
        shutil.copy(finished_run / "tokenizer" / file, tmp_path)
    value = ["\ud800"] if field == "additional_special_tokens" else "\ud800"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(FILES["tokenizer_config.json"] | {field: value}))
    read_or_refused(lambda: read_chat(epath.Path(tmp_path)))
    decoder = {"added_tokens_decoder": {"900": {"content": "\ud800"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(FILES["tokenizer_config.json"] | decoder))
    with pytest.raises(ModelFormatError, match=r"added token .* has the id 900"):
        read_chat(epath.Path(tmp_path))


@pytest.mark.parametrize("name", FILES)
@ANY
@given(data=st.data())
def test_any_file_of_a_tokenizer(name, finished_run, tmp_path, data):
    if not (tmp_path / "tokenizer.model").exists():
        for file in ("tokenizer.model", "chat_template.jinja"):
            shutil.copy(finished_run / "tokenizer" / file, tmp_path)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(FILES["tokenizer_config.json"]))
    (tmp_path / name).write_text(json.dumps(data.draw(changed(FILES[name]))))
    read_or_refused(lambda: read_chat(epath.Path(tmp_path)))


@ANY
@given(data=st.data())
def test_any_settings_of_a_run(data):
    stored = json.loads(default_config().to_json())
    read_or_refused(lambda: from_stored(data.draw(changed(stored))))
