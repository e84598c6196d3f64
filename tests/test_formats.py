"""Files of AlpacaEval and MT-Bench, and preference pairs for TRL: what is read and written, and that these programs
accept them."""

import json

import jax
import pytest
from conftest import assert_mentions, ended
from etils import epath

from selfreward_jax.cli import export, generate
from selfreward_jax.config import ConfigError
from selfreward_jax.data.readers import DataError
from selfreward_jax.integrations import formats
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.runs.loading import load_model
from selfreward_jax.sampling.engine import Engine, Request, SamplingParams

INSTRUCTIONS = [
    {
        "dataset": "koala",
        "instruction": "Name five trees.",
        "output": "Oak.",
        "generator": "other",
        "datasplit": "eval",
    },
    {"instruction": "Hi.", "output": "Hello there, friend.", "generator": "other"},
]
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Name five trees.", "Two more."]},
    {"question_id": 82, "category": "math", "turns": ["Hi.", "Why?", "When?"], "reference": ["4"]},
]
PAIRS = [
    {"id": "m2/0", "prompt": "Hi.", "chosen": "Sure!", "rejected": "No.", "chosen_score": 4.5, "rejected_score": 1.0},
    {"id": "m2/1", "prompt": "So?", "chosen": "Yes.", "rejected": "é", "chosen_score": 3.0, "rejected_score": 2.0},
]


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("formats") / "m2"
    assert ended(export, f"--workdir={finished_run}", "--model=m2", f"--out={out}")[0] == 0
    return out


# --- rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [json.dumps(INSTRUCTIONS, indent=1), lines(*INSTRUCTIONS)])
def test_alpaca_eval_is_read_as_a_list_or_as_lines_and_keeps_its_fields(tmp_path, text):
    (tmp_path / "in").write_text(text)
    prompts = formats.read_prompts(str(tmp_path / "in"), "alpaca_eval")
    answers = {a.id: [[f"answer to {a.turns[0]}"]] for a in prompts}
    assert json.loads(formats.encode_answers("alpaca_eval", prompts, answers, "m2", 0.0)) == [
        {
            "dataset": "koala",
            "datasplit": "eval",
            "instruction": "Name five trees.",
            "output": "answer to Name five trees.",
            "generator": "m2",
        },
        {"instruction": "Hi.", "output": "answer to Hi.", "generator": "m2"},
    ]


def test_mt_bench_answer_ids_are_hashes_of_the_answers(tmp_path):
    (tmp_path / "in").write_text(lines(*QUESTIONS))
    prompts = formats.read_prompts(str(tmp_path / "in"), "mt_bench")
    assert [a.turns for a in prompts] == [tuple(q["turns"]) for q in QUESTIONS]
    answers = {"81": [["a", "b"], ["c", "d"]], "82": [["x", "y", "z"]]}
    first, second = formats.mt_bench_answers(prompts, answers, "m2", 12.5)
    assert set(first) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert (first["question_id"], first["model_id"], first["tstamp"]) == (81, "m2", 12.5)
    assert first["choices"] == [{"index": 0, "turns": ["a", "b"]}, {"index": 1, "turns": ["c", "d"]}]
    again = formats.mt_bench_answers(prompts, answers, "m2", 99.0)[0]
    assert again["answer_id"] == first["answer_id"]
    others = [formats.mt_bench_answers(prompts, answers, "m3", 12.5)[0], second]
    others += formats.mt_bench_answers(prompts[:1], {"81": [["a", "B"]]}, "m2", 12.5)
    assert len({first["answer_id"], *(o["answer_id"] for o in others)}) == 4


def test_pairs_become_text_or_messages_with_their_scores():
    scores = {"score_chosen": 4.5, "score_rejected": 1.0}
    plain = {"prompt": "Hi.", "chosen": "Sure!", "rejected": "No.", **scores}
    assert formats.to_trl_rows(PAIRS, "standard")[0] == plain
    messages = {k: [{"role": "user" if k == "prompt" else "assistant", "content": plain[k]}] for k in list(plain)[:3]}
    assert formats.to_trl_rows(PAIRS, "conversational")[0] == messages | scores


@pytest.mark.parametrize(
    ("name", "text", "facts"),
    [
        ("alpaca_eval", '[{"prompt": "a"}]', ["1", '"instruction"']),
        ("alpaca_eval", '[{"instruction": "a"}, 3]', ["2"]),
        ("alpaca_eval", '[{"instruction": "a"}', ["JSON"]),
        ("alpaca_eval", "[]", []),
        ("mt_bench", '{"question_id": 1, "turns": "a"}', ["line 1", '"turns"']),
        ("mt_bench", '{"question_id": 1, "turns": []}', ["line 1", '"turns"']),
        ("mt_bench", '{"turns": ["a"]}', ["line 1", '"question_id"']),
        ("mt_bench", lines(*QUESTIONS, QUESTIONS[0]), ["line 3", "'81'"]),
    ],
)
def test_malformed_prompt_files_are_refused(tmp_path, name, text, facts):
    (tmp_path / "in").write_text(text)
    with pytest.raises((ConfigError, DataError)) as caught:
        formats.read_prompts(str(tmp_path / "in"), name)
    assert_mentions(str(caught.value), tmp_path / "in", *facts)


# --- the commands ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outputs(exported, tmp_path_factory):
    """model_outputs.json and the instructions that it answers."""
    folder = tmp_path_factory.mktemp("alpaca")
    (folder / "in.json").write_text(json.dumps(INSTRUCTIONS))
    argv = [f"--model={exported}", f"--prompts={folder}/in.json", f"--out={folder}/model_outputs.json"]
    code, err = ended(generate, *argv, "--format=alpaca_eval", "--max_new_tokens=8", "--label=ours")
    assert code == 0, err
    return folder / "model_outputs.json", folder / "in.json"


def test_instructions_are_user_messages(exported, outputs, tmp_path):
    written = json.loads(outputs[0].read_text())
    assert [(r["instruction"], r["generator"]) for r in written] == [("Name five trees.", "ours"), ("Hi.", "ours")]
    assert sorted(p.name for p in outputs[0].parent.iterdir()) == ["in.json", "model_outputs.json"]
    (tmp_path / "in.jsonl").write_text(lines(*({"prompt": r["instruction"], "id": i} for i, r in enumerate(written))))
    argv = [
        f"--model={exported}",
        f"--prompts={tmp_path}/in.jsonl",
        f"--out={tmp_path}/out.jsonl",
        "--max_new_tokens=8",
    ]
    assert ended(generate, *argv, "--temperature=0")[0] == 0
    argv = [f"--model={exported}", f"--prompts={outputs[1]}", f"--out={tmp_path}/out.json", "--max_new_tokens=8"]
    assert ended(generate, *argv, "--format=alpaca_eval", "--temperature=0")[0] == 0
    greedy = json.loads((tmp_path / "out.json").read_text())
    assert [r["output"] for r in greedy] == [r["responses"][0]["text"] for r in read_lines(tmp_path / "out.jsonl")]


def test_a_prompt_may_be_a_conversation(exported, tmp_path):
    talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
    rows = [
        {"prompt": "Name five trees."},
        {"messages": [{"role": "user", "content": "Name five trees."}]},
        {"messages": [*talk, {"role": "user", "content": "Name five trees."}]},
    ]
    (tmp_path / "in.jsonl").write_text(lines(*rows))
    argv = [f"--model={exported}", f"--prompts={tmp_path}/in.jsonl", f"--out={tmp_path}/out.jsonl", "--logprobs"]
    code, err = ended(generate, *argv, "--max_new_tokens=8", "--temperature=0")
    assert code == 0, err
    alone, as_messages, after_talk = read_lines(tmp_path / "out.jsonl")
    assert as_messages["responses"][0]["ids"] == alone["responses"][0]["ids"]
    assert after_talk["responses"][0]["logprobs"] != alone["responses"][0]["logprobs"]
    assert after_talk["prompt"] == rows[2]["messages"]


@pytest.mark.parametrize(
    ("row", "argv", "facts"),
    [
        ({"prompt": " "}, [], ["prompt 1", "' '"]),
        ({"prompt": "a \ud83d"}, [], ["prompt 1", r"'\ud83d'", "2"]),
        ({"messages": [{"role": "assistant", "content": "a"}]}, [], ["prompt 1", "'assistant'", "'user'"]),
        ({"messages": [{"role": "user", "content": "a"}]}, ["--raw"], ["prompt 1", "raw"]),
        ({"ask": "a"}, [], ["line 1", '"prompt"', '"messages"', "'ask'"]),
        ({"prompt": "a"}, ["--max_new_tokens=256"], ["--max_new_tokens", "256"]),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_refused_on_one_line(exported, tmp_path, row, argv, facts):
    (tmp_path / "in.jsonl").write_text(lines(row))
    given = [f"--model={exported}", f"--prompts={tmp_path}/in.jsonl", f"--out={tmp_path}/out.jsonl", *argv]
    code, err = ended(generate, *given)
    assert (code, err.count("\n")) == (2, 1), err
    assert_mentions(err, *facts)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.slow
def test_each_turn_is_answered_given_the_conversation_so_far(exported, tmp_path):
    (tmp_path / "question.jsonl").write_text(lines(*QUESTIONS))
    argv = [f"--model={exported}", f"--prompts={tmp_path}/question.jsonl", f"--out={tmp_path}/ours.jsonl"]
    code, err = ended(generate, *argv, "--format=mt_bench", "--max_new_tokens=8", "--temperature=0", "--num_samples=2")
    assert code == 0, err
    written = read_lines(tmp_path / "ours.jsonl")
    assert [(r["question_id"], r["model_id"]) for r in written] == [(81, "m2"), (82, "m2")]
    model = load_model(str(exported))
    engine = Engine(model.cfg, model.params, model.chat, model.mesh, max_concurrent=1, max_length=model.max_length)
    for question, row in zip(QUESTIONS, written, strict=True):
        assert [c["index"] for c in row["choices"]] == [0, 1]
        messages = []
        for turn, answer in zip(question["turns"], row["choices"][1]["turns"], strict=True):
            messages.append(("user", turn))
            (completion,) = engine.generate([Request("x", messages)], SamplingParams(1, 0.0, 1.0, 8), jax.random.key(0))
            assert answer == completion.text
            messages.append(("assistant", answer))


def test_choices_are_separate_samples(exported, tmp_path):
    (tmp_path / "question.jsonl").write_text(lines(*QUESTIONS))
    argv = [f"--model={exported}", f"--prompts={tmp_path}/question.jsonl", "--format=mt_bench", "--max_new_tokens=8"]
    for name in ("once", "again"):
        argv_out = [*argv, f"--out={tmp_path}/{name}.jsonl", "--num_samples=3", "--temperature=1", "--top_p=1"]
        assert ended(generate, *argv_out)[0] == 0
    once, again = (read_lines(tmp_path / f"{name}.jsonl") for name in ("once", "again"))
    assert [r["choices"] for r in once] == [r["choices"] for r in again]
    assert [r["answer_id"] for r in once] == [r["answer_id"] for r in again]
    assert len({c["turns"][0] for c in once[0]["choices"]}) > 1


@pytest.mark.parametrize(
    ("argv", "facts"),
    [
        (["--format=alpaca_eval", "--out=o.jsonl"], ["--out", "o.jsonl", ".json"]),
        (["--format=mt_bench", "--out=o.json"], ["--out", "o.json", ".jsonl"]),
        (["--format=alpaca_eval", "--num_samples=2"], ["--num_samples", "2", "1"]),
        (["--format=alpaca_eval", "--logprobs"], ["--logprobs", "alpaca_eval"]),
        (["--format=alpaca_eval"], ["question.jsonl", "1", '"instruction"']),
        (["--format=mt_bench", "--out=HERE/o.jsonl", "--max_new_tokens=100"], ["--max_new_tokens", "3", "256"]),
        (["--format=elo"], ["--format", "'elo'"]),
    ],
)
def test_options_that_a_format_cannot_hold_are_refused_on_one_line(exported, tmp_path, argv, facts):
    (tmp_path / "question.jsonl").write_text(lines(*QUESTIONS))
    given = [f"--model={exported}", f"--prompts={tmp_path}/question.jsonl", f"--out={tmp_path}/o.json"]
    code, err = ended(generate, *given, *[a.replace("HERE", str(tmp_path)) for a in argv])
    assert (code, err.count("\n")) == (2, 1), err
    assert_mentions(err.replace("/", " "), *facts)
    assert [p.name for p in tmp_path.iterdir()] == ["question.jsonl"]


# --- the programs that read these files ---------------------------------------------------------------------


def test_alpaca_eval_evaluates_the_outputs(outputs, tmp_path):
    alpaca_eval = pytest.importorskip("alpaca_eval", exc_type=ImportError)
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "prompt.txt").write_text("{instruction}\n(a) {output_1}\n(b) {output_2}\n")
    # alpaca_eval's decoder for tests, which answers the same to every prompt.
    (tmp_path / "judge" / "configs.yaml").write_text(
        f"""judge:
  prompt_template: {tmp_path}/judge/prompt.txt
  fn_completions: test_completions
  completions_kwargs: {{value: (b)}}
  completion_parser_kwargs: {{outputs_to_match: {{1: '\\(a\\)', 2: '\\(b\\)'}}}}
  is_randomize_output_order: false
"""
    )
    board, annotated = alpaca_eval.evaluate(
        model_outputs=outputs[0],
        reference_outputs=outputs[1],
        annotators_config=tmp_path / "judge",
        fn_metric="get_winrate",
        sort_by="win_rate",
        precomputed_leaderboard=None,
        is_return_instead_of_print=True,
        is_cache_leaderboard=False,
        output_path=None,
        caching_path=None,
    )
    written = json.loads(outputs[0].read_text())
    assert list(board.index) == ["ours"]
    assert board.loc["ours", "win_rate"] == 100.0
    assert [a["output_2"] for a in annotated] == [r["output"] for r in written]
    assert [a["output_1"] for a in annotated] == [r["output"] for r in INSTRUCTIONS]


@pytest.mark.parametrize("pair_format", formats.PAIR_FORMATS)
def test_trl_trains_on_the_pairs(finished_run, exported, tmp_path, pair_format):
    trl = pytest.importorskip("trl", exc_type=ImportError)
    datasets, transformers = pytest.importorskip("datasets"), pytest.importorskip("transformers")
    options = ["--pairs=m2", f"--out={tmp_path}/p.jsonl", f"--format={pair_format}"]
    assert ended(export, f"--workdir={finished_run}", *options)[0] == 0
    rows, chat = read_lines(finished_run / "m2" / "pairs.jsonl"), read_chat(epath.Path(exported))
    files = {"data_files": str(tmp_path / "p.jsonl"), "cache_dir": str(tmp_path / "cache")}
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    trainer = trl.DPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(exported),
        args=trl.DPOConfig(
            str(tmp_path / "dpo"), per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to=[]
        ),
        train_dataset=datasets.load_dataset("json", split="train", **files),
        processing_class=tokenizer,
    )
    dataset = trainer.train_dataset
    assert dataset["score_chosen"] == [r["chosen_score"] for r in rows]
    for row, theirs in zip(rows, dataset, strict=True):
        for side in ("chosen", "rejected"):
            ids = theirs["prompt_ids"] + theirs[f"{side}_ids"]
            if pair_format == "conversational":  # the same tokens and targets as in our DPO
                ours = chat.example(row["prompt"], row[side])
                assert ids == ours.ids
                assert [False] * len(theirs["prompt_ids"]) + [True] * len(theirs[f"{side}_ids"]) == ours.target
            else:
                assert ids[0] == tokenizer.bos_token_id
                assert tokenizer.decode(ids[1:]) == row["prompt"] + row[side] + "<eos>"
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == batch["completion_mask"].shape
    assert batch["input_ids"].shape[0] == 2 * min(4, len(rows))
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(0.6931, abs=1e-4)  # policy = reference
