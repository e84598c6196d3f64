"""The Python API: it gives what engine, judge, loss, program and export give, and refuses bad input on one line."""

import doctest
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, assert_mentions, ended, micro, on_eight_devices

import selfreward_jax as sr
from selfreward_jax import config, loop
from selfreward_jax.cli import export, generate
from selfreward_jax.config import default_config
from selfreward_jax.config.overrides import override
from selfreward_jax.llm.chat import Chat, builtin_template
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.tokenizer import ASSISTANT, BOS, END, EOS, USER
from selfreward_jax.method import judge as judging
from selfreward_jax.method import templates
from selfreward_jax.method.judge_parsing import PARSERS
from selfreward_jax.runs.loading import load_model
from selfreward_jax.sampling import requests
from selfreward_jax.sampling.engine import Request, SamplingParams
from selfreward_jax.train import dpo

PROMPTS = ["This is Hanna. Which five instruments would suit my story?", "Hello", "Name two fruits for a picnic."]
HOT = {"temperature": 1.0, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def model(finished_run):
    return sr.load(finished_run, "m2")


@pytest.fixture(scope="module")
def samples(model):
    return model.generate(PROMPTS, num_samples=3, **HOT)


# --- import ---


def test_the_import_brings_no_jax_and_takes_little():
    script = """
import sys, time
start = time.process_time()
import selfreward_jax as sr
seconds = time.process_time() - start
assert sr.parse_score("Score: 4") == 4.0 and issubclass(sr.DataError, sr.InputError)
heavy = {"jax", "flax", "tensorflow", "orbax"} & set(sys.modules)
print(seconds, sorted(heavy), sr.__version__, set(sr.__all__) <= set(dir(sr)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, rest = done.stdout.strip().split(" ", 1)
    assert rest == f"[] {sr.__version__} True"
    assert float(seconds) < 0.2


@pytest.mark.parametrize("name", sr.__all__)
def test_every_public_name_is_there(name):
    assert getattr(sr, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'lode'"):
        _ = sr.lode


# --- run ---


def test_run_returns_the_summary_file_and_leaves_the_settings(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    cfg = micro(1)
    before = cfg.to_json()
    summary = sr.run(cfg, workdir, {"iterations": 2})
    assert cfg.to_json() == before
    assert summary == json.loads((workdir / "summary.json").read_text())
    assert summary["models"] == json.loads((finished_run / "summary.json").read_text())["models"]


def test_overrides_reach_the_run(monkeypatch):
    given = {}
    monkeypatch.setattr(loop, "run", lambda cfg, workdir, **options: given.update(cfg=cfg, workdir=workdir, **options))
    monkeypatch.setattr("selfreward_jax.storage.read_json", lambda path: given["workdir"])
    assert sr.run("iter3:micro", "w", {"dpo.beta": 2, "sft.sets": ["ift"], "sft_baseline": True}) == "w"
    expected = micro(3)
    expected.update_from_flattened_dict({"dpo.beta": 2.0, "sft.sets": ("ift",), "sft_baseline": True})
    assert (given["cfg"].to_json(), given["allow_config_changes"]) == (expected.to_json(), False)
    sr.run(micro(1), "w", allow_config_changes=True)
    assert given["allow_config_changes"] is True


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"dpo.betta": 0.2}, ["dpo.betta", "0.2", "dpo.beta"]),
        ({"dpo": {"beta": 0.2}}, ["dpo", "dpo.batch_size"]),
        ({"dpo.beta": "0.2"}, ["dpo.beta", "'0.2'", "float", "0.1"]),
        ({"dpo.beta": True}, ["dpo.beta", "True", "float"]),
        ({"iterations": 2.0}, ["iterations", "2.0", "int"]),
        ({"iterations": True}, ["iterations", "True", "int"]),
        ({"sft_baseline": 1}, ["sft_baseline", "1", "bool", "False"]),
        ({"dpo.loss": None}, ["dpo.loss", "None", "str", "'sigmoid'"]),
        ({"sft.sets": "ift"}, ["sft.sets", "'ift'", "tuple"]),
        ({"sft.sets": [1]}, ["sft.sets", "tuple"]),
    ],
)
def test_overrides_are_checked(values, facts):
    cfg = default_config()
    with pytest.raises(sr.ConfigError) as error:
        override(cfg, values)
    assert "\n" not in str(error.value)
    assert_mentions(str(error.value), *facts)
    assert cfg.to_json() == default_config().to_json()


@pytest.mark.parametrize(
    ("config", "overrides", "error", "facts"),
    [
        (7, None, sr.ConfigError, ["config", "7", "ConfigDict"]),
        ("iter9", None, sr.ConfigError, ["'iter9'", "iter2"]),
        ("iter2:huge", None, sr.ConfigError, ["'huge'", "micro"]),
        ("iter2:micro", {"dpo.beta": -1.0}, sr.ConfigError, ["dpo.beta", "-1.0"]),
        ("iter2:micro", {"judge.template": "nope"}, sr.TemplateError, ["'nope'", "judge_short"]),
        ("iter2:micro", {"data.ift": "/no.jsonl", "data.eft": "/no.jsonl"}, sr.DataError, ["/no.jsonl"]),
    ],
)
def test_a_run_that_cannot_work_raises_the_projects_errors(config, overrides, error, facts, tmp_path):
    with pytest.raises(error) as raised:
        sr.run(config, tmp_path / "run", overrides)
    assert isinstance(raised.value, sr.InputError)
    assert_mentions(str(raised.value), *facts)


# --- load ---


def test_the_last_model_is_the_default(finished_run, model, monkeypatch):
    monkeypatch.setenv("HOME", str(finished_run.parent))
    assert sr.load(f"~/{finished_run.name}", "m1").name == "m1"
    assert (model.name, sr.load(str(finished_run)).name) == ("m2", "m2")
    assert_mentions(repr(model), "m2", finished_run, "256")


@pytest.mark.parametrize(
    ("path", "name", "facts"),
    [
        ("RUN", "m7", ["m0, m1, m2", "m7"]),
        ("RUN/m2", "", ["RUN/m2", "RUN"]),
        ("HERE/none", "", ["HERE/none", "OWNER/NAME@REVISION"]),
        ("runs/none", "", ["'runs/none'", "OWNER/NAME@REVISION"]),
        ("HERE", "m1", ["HERE", "config.json"]),
        ("hub:owner/name", "", ["hub:owner/name", "OWNER/NAME@REVISION"]),
    ],
)
def test_a_model_that_is_not_there_is_refused(finished_run, tmp_path, path, name, facts):
    fill = lambda x: x.replace("RUN", str(finished_run)).replace("HERE", str(tmp_path))  # noqa: E731
    with pytest.raises(sr.InputError) as error:
        sr.load(fill(path), name)
    assert "\n" not in str(error.value)
    assert_mentions(str(error.value), *map(fill, facts))


def test_a_hub_id_needs_no_prefix(monkeypatch):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision))
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for path in ("owner/name@v1", "hub:owner/name@v1"):
        with pytest.raises(sr.ModelFormatError, match="no network"):
            sr.load(path)
    assert asked == [("owner/name", "v1")] * 2


def test_compiled_programs_are_kept_unless_the_user_has_decided(finished_run, monkeypatch, tmp_path):
    enabled = []
    monkeypatch.setattr("selfreward_jax.telemetry.compile_cache.enable", lambda: enabled.append(True))
    before = jax.config.jax_compilation_cache_dir
    try:
        for folder in (str(tmp_path), None):
            jax.config.update("jax_compilation_cache_dir", folder)
            sr.load(finished_run)
            assert bool(enabled) == (folder is None)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


# --- generate and chat ---


def test_samples_are_those_of_the_engine(finished_run, samples):
    engine = load_model(str(finished_run), "m2").engine(32, 256)
    sampling_params = SamplingParams(3, HOT["temperature"], 0.9, HOT["max_new_tokens"])
    expected = engine.generate([Request(p, p) for p in PROMPTS], sampling_params, jax.random.key(0))
    for sample, completion in zip([s for of_prompt in samples for s in of_prompt], expected, strict=True):
        assert tuple(sample) == (completion.text, completion.ids, completion.logprobs, completion.finished)


def test_samples_are_those_of_the_command_line(finished_run, samples, tmp_path):
    rows = [{"id": p, "prompt": p} for p in PROMPTS]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [f"--workdir={finished_run}", f"--prompts={tmp_path}/in.jsonl", f"--out={tmp_path}/out.jsonl"]
    options += ["--num_samples=3", "--temperature=1.0", "--max_new_tokens=40"]
    assert ended(generate, *options)[0] == 0
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, of_prompt in zip(written, samples, strict=True):
        assert [(r["text"], r["finished"]) for r in row["responses"]] == [(s.text, s.finished) for s in of_prompt]


def test_samples_depend_on_seed_and_prompt_alone(model, samples):
    ids = lambda result: [[s.ids for s in of_prompt] for of_prompt in result]  # noqa: E731
    assert ids(model.generate(PROMPTS[1:2] * 2, num_samples=3, **HOT)) == ids(samples[1:2] * 2)
    assert ids(model.generate(PROMPTS, num_samples=3, seed=1, **HOT)) != ids(samples)
    assert model.generate([]) == []


def test_chat_is_generate_with_one_sample(model, samples):
    message = {"role": "user", "content": PROMPTS[0]}
    assert model.chat(PROMPTS[0], **HOT) == model.chat([message], **HOT) == samples[0][0].text
    conversation = [message, {"role": "assistant", "content": "Drum."}, {"role": "user", "content": "And?"}]
    turns = [(m["role"], m["content"]) for m in conversation]
    greedy = SamplingParams(1, 0.0, 0.9, HOT["max_new_tokens"])
    (expected,) = model._engine.generate([Request("any", turns)], greedy, jax.random.key(0))
    assert model.chat(conversation, **HOT | {"temperature": 0}) == expected.text
    assert model.encode(conversation) == model.loaded.chat.message_ids(turns)
    assert model.encode(PROMPTS[0]) == model.loaded.chat.prompt_ids(PROMPTS[0])


def test_raw_prompts_are_continued(finished_run, model):
    engine = load_model(str(finished_run), "m2").engine(32, 256, raw=True)
    texts = ["Name three", ""]
    requested = [Request(t, t) for t in texts]
    expected = engine.generate(requested, SamplingParams(1, 0.0, 0.9, 8), jax.random.key(0))
    actual = model.generate(texts, raw=True, temperature=0, max_new_tokens=8)
    assert [s.ids for (s,) in actual] == [c.ids for c in expected]
    assert model.encode(texts[0], raw=True) == model.loaded.chat.encode_prefix(texts[0])
    assert model.encode(texts[0], raw=True) != model.encode(texts[0])


def test_one_engine_serves_all_calls(model):
    first = model._engine
    model.chat(PROMPTS[0], **HOT)
    model.generate(["Name three", ""], raw=True, max_new_tokens=8)
    assert model._engine is first
    assert model._raw_engine is model._raw_engine
    assert model._raw_engine.params is first.params
    assert (first.raw, model._raw_engine.raw) == (False, True)


USER_TURN, ASSISTANT_TURN = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM_TURN = {"role": "system", "content": "c"}


@pytest.mark.parametrize(
    ("messages", "facts"),
    [
        ("", ["messages", "''"]),
        (" \n", ["messages"]),
        ([], ["messages", "[]"]),
        (USER_TURN, ["messages", "'user'"]),
        (None, ["messages", "None"]),
        (["a"], ["messages[0]", "'a'", "content"]),
        ([{"role": "user"}], ["messages[0]", "content"]),
        ([{"role": "user", "content": 3}], ["messages[0]", "3"]),
        ([{"role": "user", "content": " "}], ["messages[0]", "content"]),
        ([ASSISTANT_TURN, USER_TURN], ["messages[0]", "'assistant'", "'user'"]),
        ([USER_TURN, USER_TURN], ["messages[1]", "'user'", "'assistant'"]),
        ([USER_TURN, ASSISTANT_TURN], ["messages[1]", "'assistant'", "'user'"]),
        ([USER_TURN, SYSTEM_TURN], ["messages[1]", "'system'", "'assistant'"]),
        ([SYSTEM_TURN, SYSTEM_TURN, USER_TURN], ["messages[1]", "'system'", "'user'"]),
        ("a " * 300, ["messages", "max_new_tokens", "128", "256"]),
    ],
)
def test_messages_that_are_no_conversation_are_refused(model, messages, facts):
    with pytest.raises(sr.ConfigError) as error:
        model.chat(messages)
    assert "\n" not in str(error.value)
    assert_mentions(str(error.value).replace("[", " [").replace(" [0]", "[0]").replace(" [1]", "[1]"), *facts)


class Bytes:
    """A tokenizer of bytes."""

    special_tokens = {piece: i for i, piece in enumerate((BOS, EOS, USER, ASSISTANT, END))}
    vocab_size = 261

    def encode(self, text, preceded_by="control"):
        return [5 + b for b in text.encode()]

    def decode(self, ids):
        return bytes(i - 5 for i in ids if i >= 5).decode()


NO_SYSTEM = (
    "{% for m in messages %}{{ raise_exception('no system') if m.role == 'system' }}{{ m.role + ':' + m.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
IN_ORDER = (
    "{% for m in messages %}{% if m.role == 'user' and loop.first %}{% set ns = 1 %}{% endif %}"
    "{% if loop.first and m.role == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
    "{{ m.role + ':' + m.content }}<eos>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_a_system_message_needs_a_template_that_has_one():
    with_system, without = (Chat(Bytes(), t, BOS, EOS, [1]) for t in (IN_ORDER, NO_SYSTEM))
    assert (with_system.has_system_role, without.has_system_role) == (True, False)
    assert all(Chat(Bytes(), builtin_template(name), BOS, EOS, [1]).has_system_role for name in ("control", "plain"))
    prompt = requests.to_engine_prompt([SYSTEM_TURN, USER_TURN], "messages", with_system)
    assert prompt == (("system", "c"), ("user", "a"))
    text = with_system.tokenizer.decode(with_system.message_ids(prompt))
    assert text == "system:cuser:aassistant:"
    with pytest.raises(sr.ConfigError, match=r"messages\[0\].*'system'"):
        requests.to_engine_prompt([SYSTEM_TURN, USER_TURN], "messages", without)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"prompts": "Hello"}, ["prompts", "'Hello'", "['Hello']"]),
        ({"prompts": ["Hello", ""]}, ["prompts[1]", "''"]),
        ({"prompts": [[USER_TURN]], "raw": True}, ["prompts[0]", "raw"]),
        ({"prompts": ["a " * 300]}, ["prompts[0]", "max_new_tokens", "128", "256"]),
        ({"num_samples": 0}, ["num_samples", "0", "1"]),
        ({"num_samples": 1.5}, ["num_samples", "1.5"]),
        ({"max_new_tokens": 0}, ["max_new_tokens", "0", "1"]),
        ({"temperature": -1}, ["temperature", "-1", "0"]),
        ({"temperature": float("nan")}, ["temperature", "nan"]),
        ({"temperature": "hot"}, ["temperature", "'hot'"]),
        ({"top_p": 0}, ["top_p", "0", "1"]),
        ({"seed": -1}, ["seed", "-1", "0"]),
        ({"seed": 1 << 32}, ["seed", 1 << 32]),
        ({"seed": "a"}, ["seed", "'a'"]),
    ],
)
def test_options_out_of_range_are_refused(model, options, facts):
    with pytest.raises(sr.ConfigError) as error:
        model.generate(**{"prompts": ["Hello"], **options})
    assert "\n" not in str(error.value)
    for fact in facts:
        assert str(fact) in str(error.value)


# --- judge ---


def test_a_judgment_is_that_of_the_runs_judge(finished_run, model):
    loaded = load_model(str(finished_run), "m2")
    settings = loaded.run.cfg.judge
    text = templates.load(settings.template, {"prompt", "response"})
    params = SamplingParams(3, settings.temperature, settings.top_p, settings.max_new_tokens)
    row = {"id": judging.judge_prompt(text, PROMPTS[2], "Apple."), "prompt": PROMPTS[2], "response": "Apple."}
    ((expected,),) = judging.judge(loaded.engine(32, 256), [row], text, params, settings, jax.random.key(5))
    actual = model.judge(PROMPTS[2], "Apple.", votes=3, seed=5)
    assert actual.texts == [v["text"] for v in expected["votes"]]
    assert actual.votes == [v["score"] for v in expected["votes"]]
    assert actual.score == expected["score"]
    parsed = [v for v in actual.votes if v is not None]
    assert parsed, "choose another seed"
    assert actual.score == pytest.approx(sum(parsed) / len(parsed))


def test_judgments_of_a_batch_are_those_of_each_alone(model):
    pairs = [(PROMPTS[0], "Drum."), (PROMPTS[2], "Apple."), (PROMPTS[0], "Drum."), (PROMPTS[2], "")]
    batch = model.judge_batch(*map(list, zip(*pairs, strict=True)))
    assert batch == [model.judge(*pair) for pair in pairs]
    assert all(len(j.votes) == len(j.texts) == 3 for j in batch)  # judge.num_samples
    assert len(model.judge(*pairs[0], votes=2).votes) == 2


def test_the_settings_of_the_run_decide_how_it_judges(finished_run, monkeypatch, tmp_path):
    model = sr.load(finished_run, "m2")
    cfg = model.loaded.run.cfg.judge
    with cfg.unlocked():
        cfg.update(aggregation="expected", num_samples=3, min_votes=2)
    judged = [model.judge(PROMPTS[2], "Apple.", seed=seed) for seed in range(3)]
    assert [len(j.votes) for j in judged] == [3] * 3
    for j in judged:
        stated = [PARSERS["points"](text) for text in j.texts]
        votes = [v for v in j.votes if v is not None]
        assert j.score == (pytest.approx(sum(votes) / len(votes)) if len(votes) > 1 else None)
        assert all(v is None or 0 <= v <= 5 for v in j.votes)
        assert votes != [s for s in stated if s is not None] or not votes
    with pytest.raises(sr.ConfigError, match=r"votes is 1\b.*\b2\b"):
        model.judge(PROMPTS[2], "Apple.", votes=1)
    mine = tmp_path / "mine.txt"
    mine.write_text("Rate {response} to {prompt}.\nScore:")
    seen = []
    monkeypatch.setattr(judging, "judge", lambda engine, rows, template, *_: seen.append((rows, template)) or iter([]))
    with pytest.raises(KeyError):
        model.judge("a", "b", template=str(mine))
    assert (seen[0][1], seen[0][0][0]["id"]) == ("Rate {response} to {prompt}.\nScore:", "Rate b to a.\nScore:")


@pytest.mark.parametrize(
    ("arguments", "options", "facts"),
    [
        (("", "b"), {}, ["prompt", "''"]),
        (("a", 3), {}, ["response", "3"]),
        (("a", "b"), {"votes": 0}, ["votes", "0", "1"]),
        (("a", "b"), {"max_new_tokens": 0}, ["max_new_tokens", "0", "1"]),
        (("a", "b " * 300), {}, ["prompt", "judge template", "112", "256"]),
        (("a", "b"), {"template": "nope"}, ["'nope'", "judge_short"]),
        (("a", "b"), {"template": "new_prompt"}, ["'new_prompt'", "{prompt}"]),
    ],
)
def test_what_cannot_be_judged_is_refused(model, arguments, options, facts):
    with pytest.raises(sr.InputError) as error:
        model.judge(*arguments, **options)
    assert "\n" not in str(error.value)
    for fact in facts:
        assert fact in str(error.value)


def test_the_parser_is_that_of_the_default_scale():
    assert sr.parse_score("Good.\nScore: 4.5") == PARSERS["points"]("Good.\nScore: 4.5") == 4.5
    assert sr.parse_score("Score: 9") is None


# --- log-probs and logits ---


def test_logprobs_of_sampled_ids_are_the_engines(model, samples):
    flat = [(p, s) for p, of_prompt in zip(PROMPTS, samples, strict=True) for s in of_prompt]
    sums = model.logprobs([p for p, _ in flat], [s.ids for _, s in flat])
    assert sums.dtype == np.float32
    np.testing.assert_allclose(sums, [sum(s.logprobs) for _, s in flat], atol=1e-3, rtol=1e-5)
    chat = model.loaded.chat
    same_ids = [(p, s) for p, s in flat if chat.example(p, s.text).ids == chat.prompt_ids(p) + s.ids]
    assert same_ids, "choose another seed"
    texts = model.logprobs([p for p, _ in same_ids], [s.text for _, s in same_ids])
    np.testing.assert_allclose(texts, [sum(s.logprobs) for _, s in same_ids], atol=1e-3, rtol=1e-5)


def test_logprobs_are_those_of_the_dpo_loss(model):
    loaded = model.loaded
    responses = [("Apple and pear.", "Plum."), ("Drum, flute, violin.", "I do not know any, sorry."), ("", "a b c")]
    sides = [tuple(loaded.chat.example(p, r) for r in two) for p, two in zip(PROMPTS, responses, strict=True)]
    pairs = [dpo.Pair(*two) for two in sides]
    expected = dpo.reference_logprobs(Decoder(loaded.cfg), loaded.params, pairs, 2, loaded.mesh)
    for side in (0, 1):
        actual = model.logprobs(PROMPTS, [two[side] for two in responses])
        np.testing.assert_allclose(actual, expected[:, side], rtol=1e-4, atol=1e-3)
    many = model.logprobs([p for p in PROMPTS for _ in range(5)], [two[0] for two in responses for _ in range(5)])
    np.testing.assert_array_equal(
        many.reshape(3, 5), model.logprobs(PROMPTS, [r[0] for r in responses])[:, None].repeat(5, 1)
    )
    assert model.logprobs([], []).shape == (0,)


def test_logits_are_the_models(model):
    prompt, example = model.encode(PROMPTS[0]), model.loaded.chat.example(PROMPTS[0], "Drum.")
    ids = np.array([example.ids, example.ids[::-1]])
    logits = model.logits(ids.tolist())
    assert (logits.dtype, logits.shape) == (np.float32, (*ids.shape, model.loaded.cfg.vocab_size))
    expected = jax.jit(Decoder(model.loaded.cfg).apply)({"params": model.loaded.params}, ids)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    logprobs = np.asarray(jax.nn.log_softmax(logits[0]))
    total = sum(logprobs[t - 1, example.ids[t]] for t in range(len(prompt), len(example.ids)))
    np.testing.assert_allclose(model.logprobs([PROMPTS[0]], ["Drum."]), [total], rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "arguments", "facts"),
    [
        ("logits", ([1, 2, 3],), ["(3,)", "[ids]"]),
        ("logits", ([[1, 2], [3]],), ["lengths"]),
        ("logits", ([[0.5]],), ["float64"]),
        ("logits", ([[]],), ["(1, 0)"]),
        ("logits", ([[1, 640]],), ["640", "639"]),
        ("logits", ([[-1]],), ["-1"]),
        ("logits", ([[1] * 257],), ["257", "256"]),
        ("logprobs", (["a"], ["b", "c"]), ["1 prompts", "2 responses"]),
        ("logprobs", ("a", "b"), ["prompts", "'a'", "['a']"]),
        ("logprobs", (["a", ""], ["b", "c"]), ["prompts[1]", "''"]),
        ("logprobs", (["a"], [None]), ["responses[0]", "None"]),
        ("logprobs", (["a"], [[]]), ["responses[0]", "[]"]),
        ("logprobs", (["a"], [[700]]), ["700", "639"]),
        ("logprobs", (["a"], ["b " * 300]), ["prompts[0]", "256"]),
        ("judge_batch", (["a"], [[3]]), ["responses[0]", "[3]"]),
    ],
)
def test_ids_and_lists_that_do_not_fit_are_refused(model, method, arguments, facts):
    with pytest.raises(sr.ConfigError) as error:
        getattr(model, method)(*arguments)
    assert "\n" not in str(error.value)
    for fact in facts:
        assert fact in str(error.value)


EIGHT = """
import sys
import selfreward_jax as sr
model = sr.load(sys.argv[1], "m2")
prompts = ["Hello", "Name two fruits for a picnic.", "Hello"]
logprobs = model.logprobs(prompts, ["a", "Apple.", "a"])
print(model.loaded.mesh.size, *logprobs, *model.logits([[1, 2, 3]])[0, -1, :3])
"""


def test_eight_devices_give_the_same(model, finished_run):
    numbers = [float(x) for x in on_eight_devices(EIGHT, str(finished_run)).split()]
    prompts = ["Hello", "Name two fruits for a picnic.", "Hello"]
    expected = [*model.logprobs(prompts, ["a", "Apple.", "a"]), *model.logits([[1, 2, 3]])[0, -1, :3]]
    np.testing.assert_allclose(numbers, [8, *expected], rtol=1e-4, atol=1e-4)


# --- export ---


def test_export_writes_what_the_program_writes(model, finished_run, tmp_path):
    assert ended(export, f"--workdir={finished_run}", "--model=m2", f"--out={tmp_path}/theirs")[0] == 0
    model.export(tmp_path / "ours")
    names = {p.name for p in (tmp_path / "theirs").iterdir()}
    assert names == {p.name for p in (tmp_path / "ours").iterdir()}
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    folder = sr.load(tmp_path / "ours")
    assert folder.chat(PROMPTS[0], temperature=0) == model.chat(PROMPTS[0], temperature=0)
    assert folder.judge(PROMPTS[2], "Apple.") == model.judge(PROMPTS[2], "Apple.")  # both have the default judge
    for refused, facts in (
        (lambda: folder.export(tmp_path / "again"), ["ours"]),
        (lambda: model.export(tmp_path / "ours"), [tmp_path / "ours"]),
        (lambda: model.export(tmp_path / "new", dtype="int8"), ["'int8'", "bfloat16"]),
        (lambda: sr.load(tmp_path / "ours", "m1"), ["'m1'", tmp_path / "ours"]),
    ):
        with pytest.raises(sr.ConfigError) as error:
            refused()
        assert_mentions(str(error.value), *facts)
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "new").exists()


# --- the page ---


class Checker(doctest.OutputChecker):
    """Compares what an example prints only where the page shows something: a run prints its progress."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def test_the_examples_of_the_page_run(finished_run, tmp_path, monkeypatch):
    shutil.copytree(finished_run, tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "api.md").read_text()
    blocks = re.findall(r"^```pycon\n(.*?)^```$", page, re.S | re.M)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "api.md", "docs/api.md", 0)
    shown = [example for example in test.examples if example.want]
    assert len(shown) > 12
    assert len(test.examples) == page.count("\n>>> ")
    lines = []
    runner = doctest.DocTestRunner(Checker(), verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, out=lines.append)
    assert runner.failures == 0, "".join(lines)
    assert config.get_config("micro").iterations == 2  # the page changed a copy
