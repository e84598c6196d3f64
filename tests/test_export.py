"""export and generate: the exported folder, responses to a prompt file, chat, and damaged model folders."""

import io
import json
import runpy
import shutil
import sys
from argparse import Namespace

import jax
import numpy as np
import pytest
from conftest import ROOT, arguments, assert_mentions, ended
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax import main
from selfreward_jax.cli import chat, explain, export, generate
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.hf_tokenizer import read_chat, sentencepiece_json, write_tokenizer
from selfreward_jax.llm.tokenizer import SentencePiece, TokenizerJson, train_sentencepiece
from selfreward_jax.runs.loading import load_model

MISTRAL = ROOT.parent / "shared" / "data" / "tokenizers" / "mistral_v1.model"
PROMPT = "This is Hanna. Which five instruments would suit my story?"


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "m2"
    assert ended(export, f"--workdir={finished_run}", "--model=m2", f"--out={out}", "--shard_gb=0.0001")[0] == 0
    return out


@pytest.fixture(scope="module")
def both(finished_run, exported):
    return load_model(str(finished_run), "m2"), load_model(str(exported))


def test_the_exported_model_equals_the_model(both):
    ours, theirs = both
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    ids = ours.chat.prompt_ids(PROMPT)
    assert theirs.chat.prompt_ids(PROMPT) == ids
    assert theirs.chat.stop_ids == ours.chat.stop_ids
    assert theirs.chat.example(PROMPT, "Sure, Hanna!") == ours.chat.example(PROMPT, "Sure, Hanna!")
    logits = [jax.jit(Decoder(m.cfg).apply)({"params": m.params}, np.array([ids])) for m in both]
    np.testing.assert_array_equal(*logits)


def test_the_folder_has_the_files_that_other_programs_expect(exported):
    names = {p.name for p in exported.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert {"chat_template.jinja", "Modelfile", "README.md", "model.safetensors.index.json"} <= names
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {n for n in names if n.endswith(".safetensors")}
    assert index["metadata"]["total_size"] == 4 * sum(x.size for x in jax.tree.leaves(load_model(str(exported)).params))
    modelfile = (exported / "Modelfile").read_text()
    assert 'TEMPLATE """<|user|>{{ .Prompt }}<|end|><|assistant|>{{ .Response }}<|end|>"""' in modelfile
    assert 'PARAMETER stop "<|end|>"' in modelfile


def test_the_model_card_has_the_metrics_and_hashes_of_the_run(finished_run, exported):
    card = (exported / "README.md").read_text()
    metrics = json.loads((finished_run / "m2" / "eval.json").read_text())
    assert f"| {metrics['oracle']['mean']:.4g} |" in card
    table = [line.strip("| ").split(" | ") for line in card.partition("## Metrics")[2].partition("##")[0].splitlines()]
    rows = [cells for cells in table if len(cells) > 1][1:]
    shown = {cells[0].rpartition(" ")[2] for cells in rows}
    assert shown >= {"mean", "perfect", "length_accuracy", "parse_rate", "mean_length", "finished"}
    assert all(len(cells) == 3 and len(cells[2].split()) > 2 for cells in rows)
    assert json.loads((finished_run / "m2" / "pairs.manifest.json").read_text())["sha256"] in card
    assert json.loads((finished_run / "seed" / "ift.manifest.json").read_text())["sha256"] in card
    settings = json.loads(card.split("```json\n")[1].split("```")[0])
    assert settings == json.loads((finished_run / "config.json").read_text())


def test_it_loads_in_transformers_with_equal_logits_and_ids(both, exported):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    message = [{"role": "user", "content": PROMPT}]
    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    ours = both[0]
    assert ids == ours.chat.prompt_ids(PROMPT)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(Decoder(ours.cfg).apply({"params": ours.params}, np.array([ids]))[0], logits, atol=1e-4)


@pytest.mark.parametrize(
    ("argv", "facts"),
    [
        (["--workdir=RUN", "--out=HERE"], ["--out", "HERE"]),
        (["--workdir=RUN", "--model=m7", "--out=HERE/new"], ["RUN", "m0, m1, m2", "m7"]),
        (["--workdir=HERE", "--out=HERE/new"], ["HERE"]),
        (["--workdir=RUN"], ["--out"]),
        (["--workdir=RUN", "--out=HERE/new", "--dtype=int8"], ["--dtype", "'int8'"]),
        (["--workdir=RUN", "--out=HERE/new", "--pairs=m1"], ["RUN", "m2", "m1"]),
        (["--workdir=HERE", "--out=HERE/new", "--pairs=m2"], ["HERE", "m2"]),
        (["--workdir=RUN", "--out=HERE/new", "--pairs=m2", "--model=m2"], ["--model=m2", "--pairs=m2"]),
        (["--workdir=RUN", "--out=HERE/new", "--pairs=m2", "--format=xml"], ["--format", "'xml'"]),
        (["--workdir=RUN", "--out=HERE/new", "--pairs=m2", "--format=peft"], ["--format", "peft", "standard"]),
        (["--workdir=RUN", "--out=HERE/new", "--format=standard"], ["--format", "standard", "hf", "peft"]),
        (["--workdir=RUN", "--out=HERE/new", "--format=peft"], ["m2", "lora.rank", "0", "--format=hf"]),
        (["--workdir=RUN", "--out=HERE/new", "--shard_gb=0"], ["--shard_gb", "0.0"]),
        (["--workdir=RUN", "--out=HERE/new", "--push=me"], ["--push", "'me'", "OWNER/NAME"]),
        (["--workdir=RUN", "--out=HERE/new", "--push=../me/m2"], ["--push", "'../me/m2'"]),
        (["--workdir=RUN", "--out=HERE/new", "--public"], ["--public", "--push=OWNER/NAME"]),
        (["--workdir=RUN", "--out=gs://bucket/m2"], ["--out", "gs://bucket/m2"]),
        (["--workdir=RUN", "--out=gs://b/p.jsonl", "--pairs=m2", "--push=me/p"], ["--out", "gs://b/p.jsonl"]),
    ],
)
def test_invalid_exports_are_refused_on_one_line(finished_run, tmp_path, argv, facts):
    argv, facts = (
        [x.replace("RUN", str(finished_run)).replace("HERE", str(tmp_path)) for x in given] for given in (argv, facts)
    )
    code, err = ended(export, *argv)
    assert (code, err.count("\n")) == (2, 1), err
    assert_mentions(err, *facts)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("program", "options"),
    [(export, ["--out=OLD/new"]), (export, ["--out=OLD/new", "--pairs=m2"]), (explain, ["--pair=m2/0"])],
)
def test_a_run_of_another_version_is_refused(finished_run, tmp_path, program, options):
    shutil.copytree(finished_run, tmp_path / "old")
    stored = json.loads((finished_run / "config.json").read_text())
    stored["dpo"]["delta"] = 1.0
    (tmp_path / "old" / "config.json").write_text(json.dumps(stored))
    given = [option.replace("OLD", str(tmp_path / "old")) for option in options]
    code, err = ended(program, f"--workdir={tmp_path}/old", *given)
    assert (code, err.count("\n")) == (2, 1), err
    assert "dpo.delta" in err
    assert not (tmp_path / "old" / "new").exists()


def test_a_model_folder_is_no_run(exported, tmp_path):
    code, err = ended(export, f"--workdir={exported}", f"--out={tmp_path}/new")
    assert (code, err.count("\n")) == (2, 1), err
    assert_mentions(err, "--workdir")


# --- preference pairs ------------------------------------------------------------------------------------------


def test_exported_pairs_equal_those_of_the_run(finished_run, tmp_path):
    stored = [json.loads(line) for line in (finished_run / "m2" / "pairs.jsonl").read_text().splitlines()]
    assert ended(export, f"--workdir={finished_run}", "--pairs=m2", f"--out={tmp_path}/new/pairs.jsonl") == (0, "")
    rows = [json.loads(line) for line in (tmp_path / "new" / "pairs.jsonl").read_text().splitlines()]
    assert [r["score_chosen"] for r in rows] == [r["chosen_score"] for r in stored]
    for side in ("prompt", "chosen", "rejected"):
        assert [r[side][0]["content"] for r in rows] == [r[side] for r in stored]


def test_edited_pairs_are_not_exported(finished_run, tmp_path):
    shutil.copytree(finished_run / "m2", tmp_path / "m2", ignore=shutil.ignore_patterns("checkpoint"))
    with (tmp_path / "m2" / "pairs.jsonl").open("a") as f:
        f.write("{}\n")
    code, err = ended(export, f"--workdir={tmp_path}", "--pairs=m2", f"--out={tmp_path}/new.jsonl")
    assert (code, err.count("\n")) == (2, 1), err
    assert_mentions(err, "pairs.jsonl")


# --- tokenizer.json of a SentencePiece model -------------------------------------------------------------------

WORDS = [
    "the judge",
    " two  spaces",
    "fruits",
    "Score: 5",
    "\n",
    "\n\n",
    "é",
    "ü",
    "<",
    "<|end|>",
    "<bos>",
    "ab",
    "aab",
]
TEXT = st.lists(
    st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)), max_size=8
).map("".join)
CORPUS = ["The judge reads the fruits: apple, plum.\nScore: 5", "two  spaces, é ü", "a < b | c > d aab abab"] * 3
PIECES = {
    by_bytes: SentencePiece(train_sentencepiece(CORPUS, 420 if by_bytes else 110, by_bytes))
    for by_bytes in (True, False)
}


@pytest.mark.parametrize("by_bytes", [True, False])
@given(text=TEXT)
def test_tokenizer_json_gives_the_ids_of_its_sentencepiece_model(by_bytes, text):
    ours = PIECES[by_bytes]
    theirs = TokenizerJson(sentencepiece_json(ours))
    text = text.replace("\0", "")  # SentencePiece treats the null character in its own way
    for preceded_by in ("nothing", "control", "text"):
        assert theirs.encode(text, preceded_by) == ours.encode(text, preceded_by)
    unknown = next(i for i, p in enumerate(ours.pieces()) if p.kind == "unknown")
    if unknown not in (ids := ours.encode(text)):  # each decodes the unknown token in its own way
        assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.special_tokens == ours.special_tokens


@pytest.mark.skipif(not MISTRAL.exists(), reason="shared data is absent")
def test_a_folder_with_a_sentencepiece_model_alone_gives_the_same_ids_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    source, folder = epath.Path(tmp_path) / "source", epath.Path(tmp_path) / "folder"
    source.mkdir(), folder.mkdir()
    shutil.copy(MISTRAL, source / "tokenizer.model")
    (source / "config.json").write_text(json.dumps({"vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2}))
    chat = read_chat(source)
    write_tokenizer(folder, chat, source, trained_here=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (PROMPT, "one space, é ü\n\n漢字", "a"):
        message = [{"role": "user", "content": text}]
        theirs = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        assert theirs == chat.prompt_ids(text)


# --- generate: prompt files and chat --------------------------------------------------------------------------


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_responses_are_in_the_order_of_the_prompt_file(exported, tmp_path):
    rows = [{"prompt": PROMPT}, {"prompt": "Hi.", "id": "short"}, {"prompt": PROMPT + " " + PROMPT, "id": "long"}]
    prompts, out = write(tmp_path / "p.jsonl", *rows), tmp_path / "o.jsonl"
    argv = [
        f"--model={exported}",
        f"--prompts={prompts}",
        f"--out={out}",
        "--num_samples=2",
        "--max_new_tokens=8",
    ]
    code, err = ended(generate, *argv, "--logprobs")
    assert code == 0, err
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["id"], r["prompt"]) for r in written] == [
        ("1", PROMPT),
        ("short", "Hi."),
        ("long", f"{PROMPT} {PROMPT}"),
    ]
    for row in written:
        assert len(row["responses"]) == 2
        for response in row["responses"]:
            assert 1 <= len(response["ids"]) == len(response["logprobs"]) <= 8
            assert all(p < 0 for p in response["logprobs"])
    again = tmp_path / "again.jsonl"
    assert ended(generate, *[a.replace(str(out), str(again)) for a in argv])[0] == 0
    without = [{**r, "responses": [{k: x[k] for k in ("text", "finished")} for x in r["responses"]]} for r in written]
    assert [json.loads(line) for line in again.read_text().splitlines()] == without


def test_a_model_of_a_workdir_continues_raw_text(finished_run, tmp_path):
    prompts, out = write(tmp_path / "p.jsonl", {"prompt": "Among the birds are"}), tmp_path / "o.jsonl"
    argv = [
        f"--workdir={finished_run}",
        "--model=m0",
        "--raw",
        f"--prompts={prompts}",
        f"--out={out}",
        "--temperature=0",
        "--max_new_tokens=4",
    ]
    assert ended(generate, *argv, "--logprobs")[0] == 0
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    model = load_model(str(finished_run), "m0")
    ids = model.chat.encode_prefix("Among the birds are")
    forward = jax.jit(lambda params, tokens: Decoder(model.cfg).apply({"params": params}, tokens))
    for sampled in row["responses"][0]["ids"]:
        tokens = np.pad(ids, (0, 32 - len(ids)))[None]  # the padding comes after the last token
        assert sampled == int(forward(model.params, tokens)[0, len(ids) - 1].argmax())
        ids.append(sampled)


@pytest.mark.parametrize(
    ("text", "argv", "facts"),
    [
        ('{"prompt": "a"}\nno', [], ["PROMPTS", "line 2", "JSON"]),
        ('{"prompt": 3}', [], ["PROMPTS", "line 1", '"prompt"']),
        ('{"prompt": "a", "id": "x"}\n\n{"prompt": "b", "id": "x"}', [], ["PROMPTS", "line 3", "'x'"]),
        ("\n", [], ["PROMPTS"]),
        ('{"prompt": "' + "word " * 300 + '"}', [], ["PROMPTS", "--max_new_tokens", "4", "256"]),
        ('{"prompt": "a"}', ["--out=PROMPTS"], ["--out", "PROMPTS"]),
        ('{"prompt": "a"}', ["--prompts=nowhere.jsonl"], ["nowhere.jsonl"]),
        ('{"prompt": "a"}', ["--model=nowhere"], ["nowhere"]),
        ('{"prompt": "a"}', ["--out=/proc/nowhere/o.jsonl"], ["/proc/nowhere"]),
        ('{"prompt": "a"}', ["--top_p=0"], ["--top_p", "0"]),
        ('{"prompt": "a"}', ["--num_samples=0"], ["--num_samples", "0"]),
        ('{"prompt": "a"}', ["--max_new_tokens=some"], ["--max_new_tokens", "'some'"]),
    ],
)
def test_invalid_prompts_and_options_are_refused_on_one_line(exported, tmp_path, text, argv, facts):
    prompts, out = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    prompts.write_text(text)
    given_argv = [f"--model={exported}", f"--prompts={prompts}", f"--out={out}", "--max_new_tokens=4"]
    code, err = ended(generate, *given_argv, *[a.replace("PROMPTS", str(prompts)) for a in argv])
    assert (code, err.count("\n")) == (2, 1), err
    assert_mentions(err, *[x.replace("PROMPTS", str(prompts)) for x in facts])
    assert not out.exists()


def test_an_empty_line_starts_a_new_conversation(both, capsys):
    model = both[1]
    options = Namespace(temperature=0.0, top_p=1.0, max_new_tokens=6, max_length=0, seed=0)
    chat.chat(model, options, io.StringIO("Hi.\nHi.\n\nHi.\n" + "word " * 300 + "\n"))
    out, err = capsys.readouterr()
    first, _, third = out.splitlines()
    assert first == third  # both are greedy replies to the first message
    assert_mentions(err, model.max_length)


@pytest.mark.parametrize("module", ["selfreward_jax", "selfreward_jax.main"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_program_runs_as_a_module(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["selfreward_jax", *(["run"] if module == "selfreward_jax" else []), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    assert "selfreward-jax run" in capsys.readouterr().out


# --- damaged and hostile model folders, through the commands --------------------------------------------------


def points_elsewhere(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "../x.safetensors"}}')


def truncated(folder):
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def pickled(folder):
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'false'\ntR.")


def escaping(folder):
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")


def too_small(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))


def unknown(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))


def no_json(folder):
    (folder / "config.json").write_text("{")


def no_text(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{")


def no_tokens(folder):
    spec = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(spec | {"added_tokens": [{"id": 3}]}))


FAULTS = [no_json, no_text, no_tokens, points_elsewhere, truncated, pickled, escaping, too_small, unknown]


@pytest.mark.parametrize("spoil", FAULTS)
def test_a_bad_model_folder_is_refused_on_one_line(exported, tmp_path, spoil):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    spoil(folder)
    prompts, out = write(tmp_path / "p.jsonl", {"prompt": "Hi."}), tmp_path / "o.jsonl"
    code, err = ended(generate, f"--model={folder}", f"--prompts={prompts}", f"--out={out}")
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("selfreward_jax: ")
    assert not out.exists()
    code, err = ended(main, *arguments(tmp_path / "run", 2, f"--config.model.init={folder}"))
    assert code == 2, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("selfreward_jax: ")
