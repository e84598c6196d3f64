"""Suites: published files, and answers that are made once."""

import gzip
import json
import shutil

import pytest
from conftest import assert_mentions, ended

from selfreward_jax.cli import evaluate
from selfreward_jax.config import ConfigError
from selfreward_jax.runs.run import open_run
from selfreward_jax.stages import suite_eval
from selfreward_jax.suites import gsm8k, pairs, published, rows

GSM8K = [
    {"question": "Two and two?", "answer": "2 + 2 = 4\n#### 4"},
    {"question": "A thousand and a half?", "answer": "#### 1,000.5"},
]
LLMBAR = [
    {"input": f"Ask {i}.", "output_1": "A good answer.", "output_2": "Bad.", "label": 1 + i % 2} for i in range(4)
]


def lines(content):
    return "".join(json.dumps(row) + "\n" for row in content)


def write(folder, name, content, file="data.jsonl"):
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / file).write_text(json.dumps(content) if file.endswith(".json") else lines(content))
    return str(folder)


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"),
    [("It is 4.", True), ("4 + 0 = 4.0", True), ("2 + 2", False), ("So #### 4", True), ("four", False), ("-4", False)],
)
def test_the_last_number_counts(answer, right):
    assert gsm8k.check(GSM8K[0], answer) == {"exact match": right}
    assert gsm8k.tally({"exact match": right}) == {"exact match": (int(right), 1)}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It makes 1,000.50.", 1000.5),
        ("\u22124", -4),
        ("a loss of -$5", -5),
        ("It costs $.50", 0.5),
        ("10-4", 4),
        ("in (2)-3", 3),
        ("nothing", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert gsm8k.last_number(text) == number


@pytest.mark.parametrize("answer", ["none", "4", "#### none"])
def test_an_answer_without_a_number_is_refused(answer):
    with pytest.raises(ConfigError) as caught:
        gsm8k.prepare([*GSM8K, {"question": "q", "answer": answer}])
    assert_mentions(str(caught.value), "--suite=gsm8k", 3, answer, "####")


def test_a_right_verdict_counts_one_and_a_tie_a_half():
    matchups, labels = pairs.matchups("llmbar", LLMBAR)
    assert labels == [1, -1, 1, -1]
    assert (matchups[1].prompt, matchups[1].ours, matchups[1].theirs) == ("Ask 1.", "A good answer.", "Bad.")
    assert [pairs.tally(v, label)["accuracy"] for v, label in zip((1, 1, 0, -1), labels, strict=True)] == [
        (1, 1),
        (0, 1),
        (0.5, 1),
        (1, 1),
    ]
    row = {"question": "q", "response_A": "a", "response_B": "b", "label": "B>A"}
    assert pairs.matchups("judgebench", [row])[1] == [-1]
    with pytest.raises(ConfigError, match=r"judgebench.*row 1.*A>>B.*A>B or B>A"):
        pairs.matchups("judgebench", [row | {"label": "A>>B"}])


def test_shares_by_hand():
    shares = suite_eval._shares([{"a": (1, 2), "b": (0, 0)}, {"a": (2, 2), "b": (0, 0)}])
    assert shares["a"][0] == 0.75
    assert shares["a"][3] == 4
    assert shares["a"][1] <= 0.75 <= shares["a"][2]
    assert shares["b"] == [None, None, None, 0]


# --- files ----------------------------------------------------------------------------------------------------------


def test_all_files_of_a_folder_are_read(tmp_path):
    """As LLMBar's repository has them: five files of one name beside results of others."""
    folder = write(tmp_path, "llmbar/Natural", LLMBAR[:1], "dataset.json")
    write(tmp_path, "llmbar/Adversarial/Manual", LLMBAR[1:], "dataset.json")
    write(tmp_path, "llmbar/Natural/evaluators", [{"label": 1}], "result.json")
    folder = str(tmp_path)
    suite = rows.read_rows(folder, "llmbar", pairs.FIELDS["llmbar"])
    assert suite.rows == [*LLMBAR[1:], *LLMBAR[:1]]
    assert len(suite.digest) == 8
    write(tmp_path, "llmbar/Natural", LLMBAR[1:2], "dataset.json")
    assert rows.read_rows(folder, "llmbar", pairs.FIELDS["llmbar"]).digest != suite.digest


def test_published_forms_of_one_suite(tmp_path):
    """Parquet in a folder of the hub, gzip, and what macOS and the hub put beside them."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(GSM8K)
    for number, (name, save) in enumerate(
        [
            ("main/test-00000-of-00001.parquet", lambda path: parquet.write_table(table, path)),
            ("test.jsonl.gz", lambda path: path.write_bytes(gzip.compress(lines(GSM8K).encode()))),
            ("test.jsonl", lambda path: path.write_text(lines(GSM8K))),
        ]
    ):
        folder = tmp_path / str(number) / "gsm8k"
        (folder / name).parent.mkdir(parents=True)
        save(folder / name)
        for other in ("README.md", "._test.jsonl", "__MACOSX/test.jsonl", "dataset_infos.json"):
            (folder / other).parent.mkdir(exist_ok=True)
            (folder / other).write_text("no rows")
        assert rows.read_rows(str(folder.parent), "gsm8k", gsm8k.FIELDS).rows == GSM8K


def test_two_splits_of_one_suite_are_refused(tmp_path):
    folder = write(tmp_path, "gsm8k", GSM8K, "train.jsonl")
    write(tmp_path, "gsm8k", GSM8K, "test.jsonl")
    with pytest.raises(ConfigError) as caught:
        rows.read_rows(folder, "gsm8k", gsm8k.FIELDS)
    assert_mentions(str(caught.value), "--suite=gsm8k", 2, "test.jsonl", "train.jsonl")


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ([{"question": "q"}], ["answer", "None"]),
        ([["q"]], ["question"]),
        ([{"question": 3, "answer": "#### 1"}], ["question", "3"]),
    ],
)
def test_a_file_of_another_form_is_refused(content, facts, tmp_path):
    with pytest.raises(ConfigError) as caught:
        rows.read_rows(write(tmp_path, "gsm8k", content), "gsm8k", gsm8k.FIELDS)
    assert_mentions(str(caught.value), "--suite=gsm8k", "data.jsonl", 1, *facts)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--suite=gsm8k: \S+/gsm8k holds no"):
        rows.read_rows(str(tmp_path), "gsm8k", gsm8k.FIELDS)


def test_prompts_that_a_run_has_seen_are_counted():
    known = {"name two birds", "write a long letter to the old man of the sea"}
    prompts = [
        "Name two birds!",
        "Name two birds of prey.",
        "Please write a long letter to the old man of the sea, now.",
    ]
    assert suite_eval.count_overlap([*prompts, "A long letter to the old man of the sea"], known) == 3


# --- on a run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(finished_run, tmp_path_factory):
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("suites") / "run")


def test_models_are_measured_once(workdir, tmp_path, monkeypatch):
    seed_prompt = json.loads((workdir / "seed" / "ift.jsonl").read_text().splitlines()[0])["prompt"]
    folder = write(tmp_path, "gsm8k", [*GSM8K, {"question": seed_prompt, "answer": "#### 1"}])
    write(tmp_path, "llmbar", LLMBAR, "natural.json")
    options = [f"--workdir={workdir}", "--suite=gsm8k,llmbar", f"--suite_dir={folder}", "--suite_tokens=8"]
    code, err = ended(evaluate, *options, "--models=m1,m2")
    assert code == 0, err
    result = json.loads((workdir / "evaluation" / "suites.json").read_text())
    assert list(result["suites"]) == ["gsm8k", "llmbar"]
    assert (result["suites"]["gsm8k"]["rows"], result["suites"]["gsm8k"]["overlap"]) == (3, 1)
    assert result["suites"]["gsm8k"]["published"] is None
    assert result["suites"]["gsm8k"]["settings"]["max_new_tokens"] == 8
    assert result["suites"]["llmbar"]["settings"] == {"method": "scores"}
    for suite, metric, count in (("gsm8k", "exact match", 3), ("llmbar", "accuracy", 4)):
        assert list(result["suites"][suite]["models"]) == ["m1", "m2"]
        share, low, high, n = result["suites"][suite]["models"]["m2"][metric]
        assert low <= share <= high
        assert n == count
    verdicts = sorted(p.name for p in (workdir / "evaluation").glob("gsm8k_*_m2_8_verdicts.jsonl"))
    assert len(verdicts) == 1
    monkeypatch.setattr(suite_eval, "sample_with_engine", None)  # nothing is sampled again
    monkeypatch.setattr("selfreward_jax.stages.sampling.run_resumable", None)
    assert ended(evaluate, *options, "--models=m1,m2")[0] == 0
    assert json.loads((workdir / "evaluation" / "suites.json").read_text()) == result
    assert ended(evaluate, *options, "--suite=llmbar", "--models=m1,m2")[0] == 0  # the other suite stays
    assert json.loads((workdir / "evaluation" / "suites.json").read_text()) == result
    code, err = ended(evaluate, *options, "--suite=gsm8k,judgebench", "--suite_tokens=9")
    assert (code, err.count("\n")) == (2, 1)  # before a single answer to the first one
    assert_mentions(err, "--suite=judgebench", f"{folder}/judgebench")


@pytest.mark.parametrize(("method", "name"), [("scores", "scores"), ("pairwise", "pairwise_33")])
def test_what_a_judge_wrote_is_kept_for_its_settings(workdir, tmp_path, monkeypatch, method, name):
    run = open_run(str(workdir))
    run.cfg.pairwise.method, run.cfg.pairwise.max_new_tokens = method, 33
    stages = []
    monkeypatch.setattr(suite_eval, "judge_matchups", lambda *args: stages.append(args[-1]) or [1, 0, 0, 1])
    for tokens in (8, 9):  # of answers: no matter here
        suite_eval.run_suites(run, ["llmbar"], write(tmp_path, "llmbar", LLMBAR), ["m1"], tokens)
    digest = rows.read_rows(str(tmp_path), "llmbar", pairs.FIELDS["llmbar"]).digest
    assert stages == [f"llmbar_{digest}_m1_{name}"] * 2
    kept = workdir / "evaluation" / f"{stages[0]}_verdicts.jsonl"
    assert [json.loads(line)["verdict"] for line in kept.read_text().splitlines()] == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        (["--suite=none"], ["none", "ifeval", "judgebench"]),
        (["--suite=,"], ["--suite", "ifeval", "judgebench"]),
        (["--suite_dir="], ["--suite_dir"]),
        (["--suite_tokens=0"], ["--suite_tokens", "0"]),
        (["--suite_tokens=256"], ["--suite_tokens", "256", "model.max_length"]),
        (["--models=m9"], ["m9", "m2"]),
    ],
)
def test_mistakes_are_one_line(changed, facts, workdir, tmp_path):
    folder = write(tmp_path, "gsm8k", GSM8K)
    code, err = ended(
        evaluate, f"--workdir={workdir}", "--suite=gsm8k", f"--suite_dir={folder}", "--suite_tokens=8", *changed
    )
    assert (code, err.count("\n")) == (2, 1), err
    assert_mentions(err, *facts)


def test_the_table_by_hand():
    models = {"m0": {"exact match": [0.5, 0.25, 0.75, 4]}, "m1": {"exact match": [None, None, None, 0]}}
    suite = {"rows": 4, "digest": "x", "overlap": 2, "published": ["Some Model IT", 0.512], "models": models}
    suite["settings"] = {"temperature": 0.0, "max_new_tokens": 8}
    table = suite_eval.format_suites({"suites": {"gsm8k": suite}})
    assert "0.500 [0.250 0.750]" in table[3]
    assert table[3].rstrip().endswith("-")
    assert_mentions(table[4], "Some Model IT", 0.512)
    assert_mentions(table[5], "caution", 2)


def test_the_published_figure_is_that_of_the_shape():
    gemma = (18, 640, 2048)
    assert published.published_figure("ifeval", gemma) == ["Gemma 3 270M IT", 0.512]
    assert published.published_figure("gsm8k", gemma) is None
    assert published.published_figure("ifeval", (1, 8, 8)) is None
