"""A run from a folder whose template puts thinking blocks around answers: nothing is added from round to round."""

import json

import numpy as np
import pytest
from conftest import ended, run
from safetensors.numpy import load_file, save_file

from selfreward_jax.cli import export
from selfreward_jax.llm.thinking import TAGS
from selfreward_jax.runs.run import open_run

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% else %}"
    "<|assistant|>{% if loop.last %}<think></think>{% endif %}{{ m.content.split('</think>')[-1] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is false %}<think></think>{% endif %}"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def folder(finished_run, tmp_path_factory):
    """The model of a run with two more tokens, and a template as of Qwen3."""
    path = tmp_path_factory.mktemp("exported") / "model"
    code, err = ended(export, f"--workdir={finished_run}", "--model=m1", f"--out={path}")
    assert code == 0, err
    config = json.loads((path / "config.json").read_text())
    spec = json.loads((path / "tokenizer.json").read_text())
    bos = config["bos_token_id"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    spec["added_tokens"] += [{"id": config["vocab_size"] + i, "content": tag, **flags} for i, tag in enumerate(TAGS)]
    (path / "tokenizer.json").write_text(json.dumps(spec))
    (path / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 2}))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    weights = load_file(path / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = np.concatenate([weights[name], weights[name][[bos, bos]]])  # never sampled
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("thinking", ["off", "on"])
def test_three_rounds_teach_what_the_first_one_taught(folder, tmp_path, thinking):
    workdir = tmp_path / "run"
    run(
        workdir,
        3,
        "--config.iterations=4",
        f"--config.model.init={folder}",
        f"--config.chat.thinking={thinking}",
        "--config.sft.lr=3e-3",
    )
    chat = open_run(str(workdir)).models.chat
    ids = [chat.tokenizer.encode(tag)[-1] for tag in TAGS]
    num_blocks = 1 if thinking == "on" else 0
    seen = 0
    for model in ("m2", "m3", "m4"):
        rows = {name: read(workdir / model / f"{name}.jsonl") for name in ("prompts", "responses", "pairs")}
        texts = [row["prompt"] for row in rows["prompts"]]
        texts += [answer["text"] for row in rows["responses"] for answer in row["responses"]]
        assert not any(text.startswith(TAGS[0]) for text in texts)
        for row in rows["pairs"]:
            for reply in (row["chosen"], row["rejected"]):
                example = chat.example(row["prompt"], reply)
                targets = [i for i, is_target in zip(example.ids, example.target, strict=True) if is_target]
                # A model of this size also writes stray tags within an answer.
                assert [targets.count(i) - reply.count(tag) for i, tag in zip(ids, TAGS, strict=True)] == [
                    num_blocks
                ] * 2
                assert chat.response_text(targets) == reply
                seen += 1
    assert seen


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines() if "prompt" in line]
