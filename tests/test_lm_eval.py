"""lm-evaluation-harness on our models: offline tasks of each kind, against a plain forward and its own hf backend."""

import json
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

from selfreward_jax.cli import program
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.runs.loading import load_model
from selfreward_jax.train import logprobs as token_scores

TEXTS = ["This is Hanna.", " two  spaces ", "a<|end|>b<bos>c", "<bos><|user|>Hi.<|end|><|assistant|>", "é\n\nü"]


def request(*args):
    """A request, as lm_eval makes them."""
    return SimpleNamespace(args=args)


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval")
    from selfreward_jax.integrations import lm_eval as module

    return module


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    to = tmp_path_factory.mktemp("harness") / "m2"
    assert program.main(["export", f"--workdir={finished_run}", "--model=m2", f"--out={to}"]) == 0
    return to


@pytest.fixture(scope="module")
def model(harness, finished_run):
    return harness.HarnessLM(str(finished_run), name="m2", batch_size=4)


@pytest.fixture(scope="module")
def tasks(finished_run, tmp_path_factory):
    """A task of each kind: multiple_choice between both answers, generate_until, and rolling log-likelihoods."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [json.loads(line) for line in (finished_run / "m2" / "pairs.jsonl").read_text().splitlines()[:5]]
    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows]
    rows[0]["prompt"] = " ".join([rows[0]["prompt"]] * 8)  # longer than max_length in the tests that lower it
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    source = {"data_files": {"test": str(folder / "rows.json")}, "cache_dir": str(folder / "cache")}
    data = {"dataset_path": "json", "dataset_kwargs": source, "test_split": "test"}
    greedy = {"until": [","], "max_gen_toks": 12, "do_sample": False}
    choose = {"doc_to_text": "{{prompt}}", "doc_to_choice": "{{[chosen, rejected]}}", "doc_to_target": 0}
    answer = {"doc_to_text": "{{prompt}}", "doc_to_target": "{{chosen}}", "generation_kwargs": greedy}
    read = {"doc_to_text": "", "doc_to_target": "{{prompt}} {{chosen}} {{rejected}}"}
    kinds = [("multiple_choice", choose, "acc"), ("generate_until", answer, "exact_match")]
    kinds += [("loglikelihood_rolling", read, "byte_perplexity")]
    return [{"task": k, "output_type": k, **data, **options, "metric_list": [{"metric": m}]} for k, options, m in kinds]


def evaluated(model, tasks, **options):
    """lm_eval's metrics of each task, and its responses to each document."""
    import lm_eval

    found = lm_eval.simple_evaluate(model=model, tasks=tasks, bootstrap_iters=0, **options)
    responses = {
        kind: [[r for (r,) in s["resps"]] for s in sorted(samples, key=lambda s: s["doc_id"])]
        for kind, samples in found["samples"].items()
    }
    return found["results"], responses


@partial(jax.jit, static_argnames="cfg")
def forward(cfg, params, tokens):
    model = Decoder(cfg)
    return token_scores.token_logprobs(model, params, tokens), model.apply({"params": params}, tokens).argmax(-1)


def plain(loaded, ids):
    """Log-probs of ids and the greedy token after each, by one plain forward; padded, to compile once."""
    tokens = np.zeros((1, 192), np.int32)
    tokens[0, : len(ids)] = ids
    logprobs, likeliest = forward(loaded.cfg, loaded.params, tokens)
    return np.array(logprobs)[0, : len(ids)], np.array(likeliest)[0, : len(ids)]


def direct(loaded, context, continuation):
    """Log-prob of a continuation, and whether it is the greedy one."""
    logprobs, likeliest = plain(loaded, context + continuation)
    n = len(context)
    return float(logprobs[n:].sum()), likeliest[n - 1 : -1].tolist() == continuation


def greedy(loaded, context, max_new_tokens):
    """The greedy continuation, up to a stop id."""
    ids = []
    while len(ids) < max_new_tokens and not (ids and ids[-1] in loaded.chat.stop_ids):
        ids.append(int(plain(loaded, context + ids)[1][-1]))
    return ids


def test_without_lm_eval_the_import_error_names_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "selfreward_jax.integrations.lm_eval", raising=False)
    for name in ("lm_eval", "lm_eval.api.model", "lm_eval.models.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"\blm_eval\b"):
        __import__("selfreward_jax.integrations.lm_eval")
    sys.modules.pop("selfreward_jax.integrations.lm_eval", None)


def test_each_kind_of_task_equals_a_plain_forward(model, tasks):
    results, responses = evaluated(model, tasks)
    loaded, chat = model.model, model.chat
    rows = [json.loads(x) for x in epath.Path(tasks[0]["dataset_kwargs"]["data_files"]["test"]).read_text().split("\n")]
    right = 0
    for row, found in zip(rows, responses["multiple_choice"], strict=True):
        context = chat.encode_prefix(row["prompt"])
        expected = []
        for answer in (row["chosen"], row["rejected"]):
            full = chat.encode_prefix(f"{row['prompt']} {answer}")
            expected.append(direct(loaded, full[: len(context)], full[len(context) :]))
        np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], atol=1e-4)
        assert [f[1] for f in found] == [e[1] for e in expected]
        right += expected[0][0] > expected[1][0]
    assert results["multiple_choice"]["acc,none"] == right / len(rows)
    for row, (found,) in zip(rows, responses["generate_until"], strict=True):
        drawn = greedy(loaded, chat.encode_prefix(row["prompt"]), 12)
        assert found == chat.tokenizer.decode([t for t in drawn if t not in chat.stop_ids]).split(",")[0]
    for row, (found,) in zip(rows, responses["loglikelihood_rolling"], strict=True):
        text = chat.encode_prefix(f"{row['prompt']} {row['chosen']} {row['rejected']}")
        assert found == pytest.approx(direct(loaded, [model.prefix_token_id], text)[0], abs=1e-3)


def test_windows_of_a_long_text_predict_each_token_once(harness, finished_run):
    model = harness.HarnessLM(str(finished_run), name="m2", batch_size=3, max_length=16)
    text = "This is Hanna. Name five trees to use in my birthday. " * 4
    ids = model.tok_encode(text)
    assert len(ids) % 16  # the last window is shorter
    expected = 0.0
    for start in range(0, len(ids), 16):
        end = min(start + 16, len(ids))
        context = ids[max(0, end - 17) : start] if start else [model.prefix_token_id]
        expected += direct(model.model, context, ids[start:end])[0]
    assert model.loglikelihood_rolling([request(text)], disable_tqdm=True) == pytest.approx([expected], abs=1e-3)


def test_is_greedy_is_true_of_the_greedy_continuation_only(model):
    context = model.chat.prompt_ids("Hi.")
    best = greedy(model.model, context, 4)
    other = [*best[:-1], (best[-1] + 1) % model.model.cfg.vocab_size]
    found = model._loglikelihood_tokens([(None, context, best), (None, context, other)], disable_tqdm=True)
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_chunked_logits_give_the_same(harness, model, monkeypatch):
    loaded = model.model
    tokens = np.random.default_rng(0).integers(3, loaded.cfg.vocab_size, (3, 20))
    expected, _ = forward(loaded.cfg, loaded.params, tokens)
    for max_logits in (1, 7 * 3 * loaded.cfg.vocab_size, 1 << 25):
        monkeypatch.setattr(token_scores, "MAX_LOGITS", max_logits)
        score = jax.jit(harness.score_tokens.__wrapped__, static_argnums=0)
        logprobs, likeliest = score(loaded.cfg, loaded.params, tokens)
        np.testing.assert_allclose(logprobs, expected, atol=1e-5)
        assert likeliest.shape == tokens.shape


def test_samples_differ_by_request_and_are_reproducible(model):
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0, "top_p": 0.95}
    requests = [request("This is Hanna.", settings), request("This is Hanna.", settings)]
    requests += [request("", {**settings, "top_p": 1.0})]
    once, again = (model.generate_until(requests, disable_tqdm=True) for _ in range(2))
    assert once == again
    assert once[0] != once[1]


@pytest.mark.parametrize(
    ("settings", "fact"),
    [({"top_k": 5, "temperature": 1.0}, "top_k"), ({"num_beams": 4}, "num_beams"), ({"max_gen_toks": 256}, "256")],
)
def test_unsupported_settings_are_refused(model, settings, fact):
    with pytest.raises(ValueError, match=rf"\b{fact}\b"):
        model.generate_until([request("Hi.", settings)], disable_tqdm=True)


def test_without_a_generation_prompt_the_last_message_is_continued(model):
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Sure, "}]
    assert model.apply_chat_template(messages[:1]) == "<bos><|user|>Hi.<|end|><|assistant|>"
    assert (
        model.apply_chat_template(messages, add_generation_prompt=False) == "<bos><|user|>Hi.<|end|><|assistant|>Sure,"
    )
    assert model.tok_encode(model.apply_chat_template(messages[:1])) == model.chat.prompt_ids("Hi.")


# --- against lm_eval's own hf backend --------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_the_hf_backend_agrees_on_the_exported_folder(harness, finished_run, exported, tasks, chat):
    pytest.importorskip("torch")
    options = {"add_bos_token": True, "max_length": 64, "batch_size": 4}
    ours = harness.HarnessLM(str(finished_run), name="m2", **options)
    run = partial(evaluated, tasks=tasks, apply_chat_template=chat)
    metrics, found = run(ours)
    theirs = {"pretrained": str(exported), "dtype": "float32", **options}
    metrics_hf, found_hf = run("hf", model_args=theirs, device="cpu")
    assert metrics["multiple_choice"] == metrics_hf["multiple_choice"]
    assert found["generate_until"] == found_hf["generate_until"]
    for kind in ("multiple_choice", "loglikelihood_rolling"):
        np.testing.assert_allclose(found[kind], found_hf[kind], atol=1e-4)


@pytest.mark.parametrize("change", ["none", "true", "false", "post-processor"])
def test_text_has_the_ids_that_transformers_gives_it(harness, exported, tmp_path, change):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"true": {"add_bos_token": True}, "false": {"add_bos_token": False}}.get(change, {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if change == "post-processor":
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
        tokenizer.save(str(folder / "tokenizer.json"))
    ours, theirs = harness.HarnessLM(str(folder)), transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        begun = text.startswith("<bos>")  # lm_eval adds no second one
        expected = theirs(text, **({"add_special_tokens": False} if begun else {}))["input_ids"]
        assert ours.tok_encode(text) == expected, text


def test_a_model_is_loaded_from_its_run_or_its_folder(harness, finished_run, exported):
    loaded = load_model(str(finished_run), "m2")
    for lm in (harness.HarnessLM(str(finished_run), "m2"), harness.HarnessLM(str(exported))):
        assert (lm.max_length, lm.eot_token_id) == (loaded.max_length, loaded.chat.tokenizer.special_tokens["<eos>"])
        assert "/" not in lm.tokenizer_name
