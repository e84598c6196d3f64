"""selfreward-jax check: seeds, examples, steps, memory and time are shown, faults are refused, nothing is written."""

import hashlib
import json
import re

import pytest
from conftest import ROOT, assert_mentions

from selfreward_jax.cli import program
from selfreward_jax.llm.chat import Chat, ChatError, Example, builtin_template, render
from selfreward_jax.llm.tokenizer import SentencePiece, TokenizerJson, train_sentencepiece
from selfreward_jax.stages.preview import render_example, unknown_ids, unknown_warnings

OWN = "iter2:micro --config.data.ift_rows=0 --config.data.eft_rows=0 --config.data.judge_eval_prompts=4".split()

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)  # of an added token


def contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def checked(capsys, *argv):
    """Exit code, standard output and standard error."""
    code = program.main(["check", *argv])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Seed files of a user."""
    folder = tmp_path_factory.mktemp("own")
    colours = ["red", "green", "blue", "black", "white", "grey", "pink", "brown"]
    things = [f"{i} {c}" for i in range(4) for c in colours]
    ift = [{"prompt": f"Name things that are {t}.", "response": f"{t} things"} for t in things]
    answers = [{"response": "It is like that.", "score": 5}, {"response": "No.", "score": 1}]
    eft = [{"prompt": f"What is like {t} here?", "answers": answers} for t in things]
    for name, rows in (("ift", ift), ("eft", eft)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_from_nothing_is_described_and_nothing_is_written(tmp_path, capsys):
    code, out, err = checked(capsys, "iter3:micro", f"--workdir={tmp_path}/new")
    assert (code, err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert_mentions(out.splitlines()[0], f"{tmp_path}/new", "m3")
    assert re.search(r"ift: 64 answers read; .*64 kept", out)
    for name, rows in (("ift", 64), ("eft", 96), ("documents", 64)):
        assert re.search(rf"^{name} +{rows} +\d+ +\d+ +\d+ +\d+$", out, re.M)
        assert re.search(rf"^{name}, 1 of {rows}:\n +<bos>.*", out, re.M)
    assert out.count("«") == out.count("»")
    assert len(re.findall(r"^m[123] \w+ .*~", out, re.M)) > 15
    assert re.search(r"^time left: (about|at least) [\d.]+ (s|min)", out, re.M)
    assert_mentions(out, "41,120")  # parameters


def test_the_vocabulary_of_the_trained_tokenizer_counts(tmp_path, capsys):
    changed = [
        "iter1:micro",
        f"--workdir={tmp_path}/new",
        "--config.tokenizer.vocab_size=4000",
        "--config.iterations=1",
    ]
    out = checked(capsys, *changed)[1]
    parameters = int(re.search(r"parameters: ([\d,]+)", out)[1].replace(",", ""))
    assert 41_120 <= parameters < 41_120 + 32 * (4000 - 640)  # the toy world has fewer pieces than 4,000


def test_of_a_finished_run_the_seeds_are_read_and_all_is_done(finished_run, capsys):
    before = contents(finished_run)
    code, out, err = checked(capsys, f"{ROOT}/configs/iter2.py:micro", f"--workdir={finished_run}")
    assert (code, err) == (0, "")
    assert contents(finished_run) == before
    assert "~" not in out
    assert out.splitlines()[-1] == "nothing is left to do"


def test_dry_run_is_the_same(tmp_path, capsys):
    assert program.main(["run", "iter1:micro", f"--workdir={tmp_path}/new", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert checked(capsys, "iter1:micro", f"--workdir={tmp_path}/new")[1].splitlines()[:20] == lines[:20]


def test_ones_own_seeds_are_read(own, tmp_path, capsys):
    with (own / "ift.jsonl").open("a") as f:
        f.write(json.dumps({"prompt": "Name things that are 0 red.", "response": "0 red things"}) + "\n")
    data = [f"--config.data.{name}={own}/{name}.jsonl" for name in ("ift", "eft")]
    code, out, err = checked(capsys, *OWN, *data, f"--workdir={tmp_path}/new")
    assert (code, err) == (0, "")
    assert re.search(r"ift: 33 answers read; 1 [\w ]+; 32 kept", out)
    assert "«Score: " in out or "Score: 5<|end|>»" in out
    held_out = re.search(r"held out: (\d+) prompts to answer, not data.heldout_prompts 8:", out)[1]
    assert re.search(rf"^m1 eval_answers +{held_out} ", out, re.M)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        (["--config.data.ift=nowhere.jsonl"], ["data.ift", "nowhere.jsonl"]),
        (["--config.data.eft=OWN/bad.jsonl"], ["data.eft", "bad.jsonl", "line 1"]),
        (["--config.data.eft=OWN/*.nothing"], ["data.eft", "OWN/*.nothing"]),
        (["--config.sft.seq_len=8"], ["m1 sft", "8", "sft.seq_len"]),
        (["--config.prompts.num_seed_examples=40"], ["data.ift", "OWN/ift.jsonl", "prompts.num_seed_examples"]),
        (["--config.tokenizer.vocab_size=16"], ["tokenizer.vocab_size", "16", "need", "tokenizer.byte_fallback"]),
        (["--config.model.init=OWN"], ["OWN", "config.json"]),
        (["--config.judge.template=nowhere.txt"], ["nowhere.txt"]),
        (["--workdir=OWN/ift.jsonl"], ["OWN/ift.jsonl"]),
        (["--config.dpo.beta=-1"], ["dpo.beta", "-1.0"]),
        (["--config.parallel.fsdp=3"], ["parallel.fsdp", "3"]),
    ],
)
def test_what_would_stop_the_run_is_refused_on_one_line(changed, facts, own, tmp_path, capsys):
    (own / "bad.jsonl").write_text("{\n" * 20)
    data = [f"--config.data.{name}={own}/{name}.jsonl" for name in ("ift", "eft")]
    changed = [word.replace("OWN", str(own)) for word in changed]
    code, _, err = checked(capsys, *OWN, *data, f"--workdir={tmp_path}/new", *changed)
    assert (code, err.count("\n")) == (2, 1), err
    assert_mentions(err, *[fact.replace("OWN", str(own)) for fact in facts])
    assert list(tmp_path.iterdir()) == []


def test_a_system_message_is_a_turn_of_its_own(own, tmp_path, capsys):
    for name in ("ift", "eft"):
        rows = [json.loads(line) for line in (own / f"{name}.jsonl").read_text().splitlines()]
        lines = [json.dumps({"system": "Be brief.", **row}) + "\n" for row in rows]
        (own / f"system_{name}.jsonl").write_text("".join(lines))
    data = [f"--config.data.{name}={own}/system_{name}.jsonl" for name in ("ift", "eft")]
    code, out, err = checked(capsys, *OWN, *data, f"--workdir={tmp_path}/new")
    assert code == 0, err
    shown = out[out.index("ift, 1 of") : out.index("prompts, 1 of")]
    system, user = shown.index("Be brief."), shown.index(rows[0]["prompt"][:5])
    assert system < user
    assert "<" in shown[system:user], shown  # the marks that end one turn and begin the next
    assert "Be brief." not in out[out.index("prompts, 1 of") :].split("documents")[0]  # no part of an example


def test_prompts_that_cannot_be_few_shot_examples_are_explained(own, tmp_path, capsys):
    rows = [json.loads(line) for line in (own / "ift.jsonl").read_text().splitlines()]
    rows = [row | {"prompt": f"Please answer this.\n{row['prompt']}"} for row in rows]
    (own / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"--config.data.ift={own}/lines.jsonl", f"--config.data.eft={own}/eft.jsonl"]
    code, _, err = checked(capsys, *OWN, *data, f"--workdir={tmp_path}/new")
    assert (code, err.count("\n")) == (2, 1)
    assert_mentions(err, "data.ift", f"{own}/lines.jsonl", 0, 5, 32, "several lines", "prompts.multiline")
    code, out, err = checked(capsys, *OWN, *data, "--config.prompts.multiline=True", f"--workdir={tmp_path}/new")
    assert code == 0, err
    assert "<request>" in out


def test_a_run_with_refused_seeds_leaves_nothing(own, tmp_path, capsys):
    (own / "bad.jsonl").write_text("{\n" * 20)
    data = [f"--config.data.ift={own}/ift.jsonl", f"--config.data.eft={own}/bad.jsonl"]
    assert program.main(["run", *OWN, *data, f"--workdir={tmp_path}/new"]) == 2
    assert_mentions(capsys.readouterr().err, f"{own}/bad.jsonl", "line 1")
    assert list(tmp_path.iterdir()) == []


def test_malformed_and_too_long_rows_have_one_line_for_each_set(own, tmp_path, capsys):
    rows = [json.loads(line) for line in (own / "ift.jsonl").read_text().splitlines()]
    long = [{"prompt": f"Say {i} again.", "response": "blue red " * 400} for i in range(3)]
    (own / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *long]) + "{\n" * 4)
    data = [f"--config.data.ift={own}/long.jsonl", f"--config.data.eft={own}/eft.jsonl"]
    changed = [*OWN, *data, f"--workdir={tmp_path}/new", "--config.data.max_malformed_frac=0.5"]
    code, out, err = checked(capsys, *changed)
    assert (code, err) == (0, "")
    assert not re.search(r"long\.jsonl line", out.partition("Seeds")[0])
    (malformed,) = [line for line in out.splitlines() if "long.jsonl line" in line]
    assert_mentions(malformed, "ift", 4, f"line {len(rows) + 4}")
    (too_long,) = [line for line in out.splitlines() if "sft.seq_len" in line]
    assert_mentions(too_long, "ift", 3, len({row["prompt"] for row in rows}) + 3)


def test_a_share_of_unknown_tokens_is_told():
    texts = ["red green blue", "one two three", "say red", "say two and three"] * 40
    sentencepiece = SentencePiece(train_sentencepiece(texts, 60, False))
    vocab = {"red": 0, "say": 1, "<unk>": 2, "<eos>": 3}
    added = [{"id": i, "content": t, "special": True, **FLAGS} for t, i in vocab.items() if t.startswith("<")]
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    spec = {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    for tokenizer in (sentencepiece, TokenizerJson(json.dumps(spec))):
        assert len(unknown_ids(tokenizer)) == 1
        # SentencePiece joins neighbours that it does not know into one token: characters are counted.
        (line,) = unknown_warnings(tokenizer, {"data.ift": ["say \u4f60\u597d" * 9], "data.eft": ["say red"] * 9})
        assert_mentions(line, "warning", "data.ift", "\u4f60", "model.init", "tokenizer.byte_fallback")
    spelled = SentencePiece(train_sentencepiece(texts, 400, True))
    assert unknown_warnings(spelled, {"data.ift": ["\u4f60\u597d"]}) == []


def test_the_toy_world_gives_no_warning(tmp_path, capsys):
    assert "warning" not in checked(capsys, "iter2:micro", f"--workdir={tmp_path}/new")[1]


def test_a_range_of_scores_is_shown(own, tmp_path, capsys):
    rows = [json.loads(line) for line in (own / "eft.jsonl").read_text().splitlines()]
    for row in rows:
        for answer, score in zip(row["answers"], (87.5, 3), strict=True):
            answer["score"] = score
    (own / "percent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"--config.data.ift={own}/ift.jsonl", f"--config.data.eft={own}/percent.jsonl"]
    code, out, _ = checked(capsys, *OWN, *data, f"--workdir={tmp_path}/new")
    assert code == 0
    assert re.search(r"^eft: scores from 3 to 87\.5 are mapped to 0 to 5$", out, re.M)


@pytest.mark.parametrize("name", ["control", "plain"])
def test_a_builtin_template_refuses_a_role_that_it_does_not_have(name):
    values = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    user, system, tool = ({"role": role, "content": f"{role}."} for role in ("user", "system", "tool"))
    for messages in ([tool, user], [user, system, user], [system, system, user]):
        with pytest.raises(ChatError, match="user and assistant"):
            render(builtin_template(name), messages=messages, **values)
    text = render(builtin_template(name), messages=[system, user], **values)
    assert text.index("system.") < text.index("user.")


def test_special_tokens_and_targets_are_shown():
    texts = ["red green blue", "one two three", "say red", "say two and three"] * 40
    tokenizer = SentencePiece(train_sentencepiece(texts, 60, False))
    chat = Chat(tokenizer, builtin_template("control"), "<bos>", "<eos>", [tokenizer.special_tokens["<eos>"]])
    shown = render_example(chat, chat.example("say red", "red green"))
    assert shown == "<bos><|user|>say red<|end|><|assistant|>«red green<|end|>»"
    document = chat.document("say two")
    assert render_example(chat, document) == "<bos>«say two<eos>»"
    ids = document.ids
    assert render_example(chat, Example(ids, [True] + [False] * (len(ids) - 1))) == "«<bos>»say two<eos>"
