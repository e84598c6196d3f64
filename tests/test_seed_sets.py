"""Seed sets: from the embedded world and from a user's files."""

import json
import re
from functools import partial
from pathlib import Path
from random import Random

import pytest
from conftest import assert_mentions
from hypothesis import event, given
from hypothesis import strategies as st

from selfreward_jax import config
from selfreward_jax.data import parsers, seed_sets
from selfreward_jax.data.seed_sets import DataError, from_files, from_world
from selfreward_jax.method.judge_parsing import PARSERS, parse_score
from selfreward_jax.method.prompt_generation import few_shot_prompt, normalize

DATA = Path(__file__).parents[1].parent / "shared" / "data"
TRAINING = ("ift", "eft")
HELD_OUT = ("validation", "heldout", "ranked_validation", "ranked_heldout")


def prompts(sets, *names):
    return {normalize(row["prompt"]) for name in names for row in sets[name]}


# --- the embedded world ----------------------------------------------------------------------------------------


def world(seed=0, **changed):
    settings = config.get_config("micro").data
    settings.update(changed)
    return from_world(settings, seed)[0]


def test_a_world_is_a_function_of_its_seed():
    first, again, other = world(0), world(0), world(1)
    assert first == again
    for name, rows in first.items():
        assert rows != other[name], name


def test_sizes_are_those_of_the_settings():
    sets = world(ift_rows=5, eft_rows=6, num_documents=7, heldout_prompts=8, judge_eval_prompts=3, judge_eval_answers=4)
    sizes = {name: len(rows) for name, rows in sets.items()}
    assert sizes == {"ift": 5, "eft": 6, "documents": 7, **dict.fromkeys(HELD_OUT, 8), **dict.fromkeys(HELD_OUT[2:], 3)}
    assert all(len(row["answers"]) == 4 for row in sets["ranked_heldout"])


def test_the_size_of_one_set_does_not_change_the_others():
    small, large = world(ift_rows=10), world(ift_rows=20)
    assert large["ift"][:10] == small["ift"]
    for name in ("eft", "documents", "ranked_validation", "ranked_heldout"):
        assert small[name] == large[name], name


def test_held_out_prompts_of_a_world_are_not_trained_on(monkeypatch):
    # So many requests exist that few repeat by chance: offer training prompts and duplicates on purpose.
    used = [row["prompt"] for name in TRAINING for row in world()[name]][:4]
    fresh = seed_sets.generator.prompts
    monkeypatch.setattr(seed_sets.generator, "prompts", lambda count, rng: [*used, *fresh(count, Random("same"))])
    sets = world()
    assert sets["heldout"]
    assert not prompts(sets, "validation", "heldout") & prompts(sets, *TRAINING)
    assert not prompts(sets, "validation") & prompts(sets, "heldout")


# --- files -----------------------------------------------------------------------------------------------------

IFT = [{"prompt": f"instruction {i}", "response": f"done {i}"} for i in range(6)]
EFT = [
    {"prompt": f"question {p}", "response": f"answer {p} {a}", "score": (3 * p + a) % 7 - 2}
    for p in range(16)
    for a in range(3)
]


@pytest.fixture
def load(tmp_path):
    """Writes rows (or raw lines) to two files and reads them as seeds."""

    def run(ift=IFT, eft=EFT, seed=0, eft_settings=None, output_format="points", **changed):
        settings = config.get_config("scratch").data
        settings.update(ift=str(tmp_path / "ift.jsonl"), eft=str(tmp_path / "eft.jsonl"), **changed)
        for path, rows in (settings.ift, ift), (settings.eft, eft):
            lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
            Path(path).write_bytes("".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape"))
        return from_files(settings, seed, eft_settings, output_format)

    return run


def test_every_accepted_field_name_gives_the_same_sets(load):
    expected, _ = load()
    for i in range(max(map(len, parsers.FIELD_NAMES.values()))):
        renamed = {field: names[i % len(names)] for field, names in parsers.FIELD_NAMES.items()}
        sets, report = load(
            ift=[{renamed[k]: v for k, v in r.items()} | {"more": 1} for r in IFT],
            eft=[{renamed[k]: v for k, v in r.items()} for r in EFT],
        )
        assert sets == expected, renamed
        assert report["eft"]["malformed"] == 0
    grouped: dict[str, list] = {}
    for r in EFT:
        grouped.setdefault(r["prompt"], []).append({"response": r["response"], "score": r["score"]})
    assert load(eft=[{"prompt": p, "answers": a} for p, a in grouped.items()])[0] == expected


def test_blank_lines_are_no_rows(load):
    assert load(ift=["", *IFT, "  "], eft=[*EFT, ""], max_malformed_frac=0.0)[0] == load()[0]


def test_scores_are_mapped_linearly_to_0_to_5(load):
    sets, report = load()
    low, high = min(r["score"] for r in EFT), max(r["score"] for r in EFT)
    mapped = {r["response"]: 5 * (r["score"] - low) / (high - low) for r in EFT}
    assert report["scores"] == {"lowest": low, "highest": high}
    for name in ("ranked_validation", "ranked_heldout"):
        for row in sets[name]:
            for a in row["answers"]:
                assert a["score"] == pytest.approx(mapped[a["response"]])
    for row in sets["eft"]:
        assert isinstance(row["score"], int)
        assert abs(row["score"] - mapped[row["response"]]) <= 0.5
        assert parse_score(row["judgment"]) == row["score"]
    assert {0, 5} <= set(mapped.values())


def test_held_out_prompts_of_files_are_not_trained_on(load):
    # The same prompts are in both files, with other capitals and punctuation.
    ift = [{"prompt": r["prompt"].upper() + "?", "response": f"done {i % 2}"} for i, r in enumerate(EFT)] + IFT
    sets, report = load(ift=ift)
    held_out = prompts(sets, *HELD_OUT)
    assert len(held_out) == 8
    assert not held_out & prompts(sets, *TRAINING)
    assert not prompts(sets, "ranked_validation") & prompts(sets, "ranked_heldout")
    texts = [normalize(row["text"]) for row in sets["documents"]]
    assert not any(text.startswith(p + " ") for text in texts for p in held_out)
    assert report["ift"]["held out"] == 8 * 2
    assert report["ift"]["duplicate answer"] == 16  # of three answers, two are the same
    assert report["eft"]["held out"] == 8 * 3
    # Nothing else is lost: each judged row is trained on, held out, or of a prompt that is assigned to IFT.
    assert report["ift"]["assigned to eft"] == 4 * 2
    assert report["eft"]["assigned to ift"] == 4 * 3
    held = [a["response"] for name in ("ranked_validation", "ranked_heldout") for r in sets[name] for a in r["answers"]]
    given = [r["response"] for r in EFT if normalize(r["prompt"]) in prompts(sets, "ift")]
    assert len(given) == 4 * 3
    assert sorted(held + given + [r["response"] for r in sets["eft"]]) == sorted(r["response"] for r in EFT)


def test_spellings_of_one_prompt_are_held_out_together(load):
    eft = [{**r, "prompt": r["prompt"].title() + "?" * (i % 2)} if i % 3 else r for i, r in enumerate(EFT)]
    sets, _ = load(eft=eft)
    held_out = prompts(sets, *HELD_OUT)
    assert len(held_out) == 8
    assert not held_out & prompts(sets, "eft")


def test_held_out_prompts_can_rank(load):
    eft = EFT + [{"prompt": f"dull {p}", "response": f"{a}", "score": 1} for p in range(9) for a in "ab"]
    sets, _ = load(eft=eft)
    for row in sets["ranked_validation"] + sets["ranked_heldout"]:
        assert len({a["score"] for a in row["answers"]}) > 1


def test_the_split_is_a_function_of_the_seed(load):
    assert load(seed=0) == load(seed=0)
    assert prompts(load(seed=0)[0], "heldout") != prompts(load(seed=1)[0], "heldout")


def test_limits_cut_the_training_sets(load):
    sets, _ = load(ift_rows=3, eft_rows=4, heldout_prompts=2)
    assert [len(sets[n]) for n in ("ift", "eft", "validation", "heldout")] == [3, 4, 2, 2]


def test_a_dropped_row_names_the_setting_of_the_limit(load):
    ift, eft, *_ = seed_sets.format_report(load(ift_rows=3, eft_rows=4)[1])
    assert_mentions(ift, "3 over the limit", "data.ift_rows")
    assert_mentions(eft, "20 over the limit", "data.eft_rows")


def test_a_limit_holds_nothing_out(load):
    assert load(ift_rows=3)[1]["ift"]["held out"] == 0


MALFORMED = [
    ("{'prompt': 1}", "JSON"),
    ("[1, 2]", "JSON"),
    ('"text"', "JSON"),
    ({"prompt": "p", "score": 1}, r"\bresponse\b.*\bprompt, score\b"),
    ({"response": "r", "score": 1}, r"\bprompt\b.*\bresponse, score\b"),
    ({"prompt": " ", "response": "r", "score": 1}, r"\bprompt\b.*' '"),
    ({"prompt": "p", "response": "", "score": 1}, r"\bresponse\b.*''"),
    ({"prompt": ["p"], "response": "r", "score": 1}, r"\bprompt\b.*\['p'\]"),
    ({"prompt": "p", "response": "r", "score": "4 of 5"}, r"\bscore\b.*'4 of 5'"),
    ({"prompt": "p", "response": "r", "score": True}, r"\bscore\b.*\bTrue\b"),
    ({"prompt": "p", "response": "r", "score": float("nan")}, r"\bscore\b.*\bnan\b"),
    ({"prompt": "p", "answers": "r"}, r"\banswers\b"),
    ({"prompt": "p", "answers": ["r"]}, r"\banswers\b"),
    ({"prompt": "p", "response": "r", "score": float("inf")}, r"\bscore\b.*\binf\b"),
    ({"prompt": "p", "response": "r", "score": 10**400}, r"\bscore\b.*\b1000+"),
    ({"prompt": "p", "response": "r", "rank": "first"}, r"\brank\b.*'first'"),
    ({"prompt": "p", "response": "r", "score": 1, "judgment": " "}, r"\bjudgment\b.*' '"),
    ('{"prompt": "p", "score": 5, "response": "r", "score": 0}', r"JSON.*'score'"),
    ({"prompt": "p" * 1_000_001, "response": "r", "score": 1}, r"\bprompt\b.*\b1,000,001\b.*\b1,000,000\b"),
    ('{"prompt": "p \\ud800", "response": "r", "score": 1}', r"\bprompt\b"),
]
REASONS = {"' '": "empty text", "''": "empty text", r"\bprompt\b": "lone surrogate"}


@pytest.mark.parametrize(("row", "fault"), MALFORMED)
def test_a_malformed_row_is_named_or_dropped(load, row, fault):
    eft = [*EFT[:2], row, *EFT[2:]]
    facts = rf"^data\.eft: .*eft\.jsonl line 3\b.*{fault}.*\b1\b.*\b{len(eft)}\b.*data\.max_malformed_frac\b"
    with pytest.raises(DataError, match=facts) as error:
        load(eft=eft, max_malformed_frac=0.5 / len(eft))
    assert "\n" not in str(error.value)
    sets, report = load(eft=eft, max_malformed_frac=1.5 / len(eft))
    assert sets == load()[0]
    expected = next((reason for end, reason in REASONS.items() if fault.endswith(end)), "malformed")
    assert {name: report["eft"][name] for name in parsers.DROP_REASONS[:3]} == {
        name: int(name == expected) for name in parsers.DROP_REASONS[:3]
    }
    assert "eft.jsonl line 3" in seed_sets.format_report(report)[-1]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "response": "r"},
        {"prompt": "p", "response": "r", "score": None},
        {"prompt": "p", "answers": [{"response": "r"}]},
        {"prompt": "p", "response": "r", "judgment": "Good."},
    ],
)
def test_an_answer_without_a_score_is_counted_but_is_no_fault(load, row):
    sets, report = load(eft=[*EFT[:2], row, *EFT[2:]], max_malformed_frac=0.0)
    assert sets == load()[0]
    assert report["eft"]["no score"] == 1


def test_one_line_names_the_first_fault_and_the_number_of_all(load, capsys):
    _, report = load(eft=[*EFT, *["{"] * 12], max_malformed_frac=0.5)
    assert capsys.readouterr() == ("", "")
    assert [f"line {len(EFT) + i}:" in fault for i, fault in enumerate(report["faults"]["eft"], 1)] == [True] * 10
    lines = seed_sets.format_report(report)
    assert sum("eft.jsonl" in line for line in lines) == 1
    assert_mentions(lines[-1], "eft", 12, f"line {len(EFT) + 1}")


def test_a_missing_file_is_named(tmp_path):
    settings = config.get_config("scratch").data
    settings.update(ift=str(tmp_path / "none.jsonl"), eft=str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"^data\.ift and data\.eft: .*none\.jsonl\b"):
        from_files(settings, 0)


def test_a_folder_is_refused(tmp_path):
    settings = config.get_config("scratch").data
    settings.update(ift=str(tmp_path), eft=str(tmp_path))
    with pytest.raises(DataError, match=rf"^data\.ift and data\.eft: .*{tmp_path}/\*\.jsonl"):
        from_files(settings, 0)


def test_an_empty_file_is_named(load):
    with pytest.raises(DataError, match=r"^data\.ift: .*ift\.jsonl\b.*docs/data\.md"):
        load(ift=[])


def test_one_score_for_all_is_refused(load):
    with pytest.raises(DataError, match=r"data\.eft\b.*eft\.jsonl\b.*\b3\b"):
        load(eft=[{**r, "score": 3} for r in EFT])


def test_too_few_rows_are_refused_with_their_numbers(load):
    with pytest.raises(DataError, match=r"^data\.ift\b.*ift\.jsonl\b.*\b1\b.*\b2\b"):
        load(ift=IFT[:1])
    with pytest.raises(DataError, match=r"^data\.eft\b.*eft\.jsonl\b.*\b4\b.*\b8\b"):
        load(eft=EFT[: 3 * 4])
    with pytest.raises(DataError, match=r"^data\.eft\b.*eft\.jsonl\b.*\b16\b.*\b16\b.*\bscore\b.*\brank\b"):
        load(eft=[{k: v for k, v in row.items() if k != "score"} for row in EFT[::3]])
    with pytest.raises(DataError, match=r"^data\.judge_eval_prompts\b.*\b1\b.*\b2\b"):
        load(judge_eval_prompts=1)
    assert load(eft=EFT[: 3 * 8])[1]["eft"]["held out"] == 4 * 3  # eight prompts are enough


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\x7f\u2029"])
def test_unicode_line_separators_inside_a_text_are_text(load, mark):
    ift = [*IFT, {"prompt": f"one{mark}two", "response": "done"}]
    assert load(ift=ift, max_malformed_frac=0.0)[0]["ift"][-1]["prompt"] == ift[-1]["prompt"]


def test_a_file_that_is_not_utf_8_is_refused(load):
    with pytest.raises(DataError):
        load(ift=[*IFT, '{"prompt": "caf\udce9", "response": "done"}'], max_malformed_frac=0.0)


# --- training rows -----------------------------------------------------------------------------------------


def test_prompt_rows_have_a_target_that_is_no_example():
    known = [f"request {chr(97 + i)}" for i in range(6)]
    rows = seed_sets.prompt_rows(known, 20, 3, partial(few_shot_prompt, "{examples}"), Random(0))
    for row in rows:
        shown = [line.removeprefix("- ") for line in row["prompt"].splitlines()]
        assert len({*shown, row["response"]}) == 4
        assert {*shown, row["response"]} <= set(known)
    assert len({row["response"] for row in rows}) > 1


def test_judge_rows_answer_the_judges_prompt_with_the_judgment():
    eft = [{"prompt": "p", "response": "r", "judgment": "Score: 4", "score": 4}]
    assert seed_sets.judge_rows(eft, lambda p, r: f"<{p}|{r}>") == [{"prompt": "<p|r>", "response": "Score: 4"}]


# --- splits -------------------------------------------------------------------------------------------

RANKED = [
    {"prompt": f"question {p}", "answers": [{"response": f"answer {p} {a}", "rank": a} for a in range(3)]}
    for p in range(16)
]


def sums(report):
    """Whether every answer that was read is kept or counted under one reason."""
    return all(
        counts["read"] == sum(n for name, n in counts.items() if name != "read")
        for counts in (report["ift"], report["eft"])
    )


def test_the_best_answer_becomes_the_instruction_row(load):
    ranked = [{**row, "answers": row["answers"][::-1]} for row in RANKED[:4]]
    scored = [{"prompt": f"scored {p}", "response": f"answer of {s}", "score": s} for p in range(3) for s in (1, 3, 2)]
    plain = [{"prompt": "open", "response": r} for r in "abc"]
    chosen = [{"prompt": "both", "chosen": "good", "rejected": "bad"}]
    sets, report = load(ift=[*ranked, *scored, *plain, *chosen], eft=[r | {"prompt": r["prompt"] + " x"} for r in EFT])
    assert [r["response"] for r in sets["ift"]] == [
        *[f"answer {p} 0" for p in range(4)],
        *["answer of 3"] * 3,
        *"abc",
        "good",
    ]
    assert report["ift"]["not the best answer"] == 4 * 2 + 3 * 2 + 1
    assert report["prompts"]["ift"] == 9
    assert sums(report)


def test_ranks_are_equally_spaced_within_their_prompt(load):
    tied = {"prompt": "tied", "answers": [{"response": f"t{i}", "rank": r} for i, r in enumerate((0, 4, 4, 7, 9))]}
    alone = {"prompt": "alone", "answers": [{"response": "a", "rank": 0}]}
    sets, report = load(eft=[*RANKED, tied, alone], judge_eval_prompts=2)
    score = {r["response"]: r["score"] for r in sets["eft"]}
    for row in sets["ranked_heldout"] + sets["ranked_validation"]:
        score |= {a["response"]: a["score"] for a in row["answers"]}
    assert [score[f"t{i}"] for i in range(5)] == pytest.approx([5, 10 / 3, 10 / 3, 5 / 3, 0], abs=0.5)
    assert [score["answer 0 0"], score["answer 0 2"]] == [5, 0]
    assert report["eft"]["single ranked answer"] == 1
    assert report["scores"] == {}
    assert sums(report)


def test_chosen_and_rejected_are_5_and_0(load):
    pairs = [{"prompt": f"q {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(12)]
    sets, _ = load(eft=pairs)
    assert {(r["response"].split()[0], r["score"]) for r in sets["eft"]} == {("good", 5), ("bad", 0)}


def test_a_written_judgment_is_kept_with_its_own_score(load):
    written = [{**r, "judgment": f"It does.\nScore: {i % 6}"} for i, r in enumerate(EFT)]
    sets, report = load(eft=written)
    assert sets["eft"]
    assert all(r["judgment"].startswith("It does.") and parse_score(r["judgment"]) == r["score"] for r in sets["eft"])
    assert report["scores"] == {}
    bare = [{k: v for k, v in r.items() if k != "score"} for r in written]
    assert load(eft=bare)[0] == sets
    chosen = [{**r, "judgment": "Fine.\nChoice: B"} if i == 0 else r for i, r in enumerate(bare)]
    assert any(
        a["score"] == 2
        for row in [{"answers": load(eft=chosen)[0]["eft"]}, *load(eft=chosen)[0]["ranked_heldout"]]
        for a in row["answers"]
    )


def baseline(source="baseline"):
    settings = config.get_config("scratch").eft
    settings.source = source
    return settings


def test_the_baseline_gets_answers_to_judge(load):
    dull = [{"prompt": f"dull {p}", "response": a, "score": 1} for p in range(3) for a in "ab"]
    plain, _ = load(eft=EFT + dull)
    sets, report = load(eft=EFT + dull, eft_settings=baseline())
    assert "eft" not in sets
    assert {name: rows for name, rows in sets.items() if name != "eft_answers"} == {
        name: rows for name, rows in plain.items() if name != "eft"
    }
    assert all(len({a["score"] for a in row["answers"]}) > 1 for row in sets["eft_answers"])
    assert all(row.keys() == {"prompt", "answers"} for row in sets["eft_answers"])
    assert report["eft"]["nothing to order"] == len(dull)
    assert report["eft"]["kept"] == sum(len(row["answers"]) for row in sets["eft_answers"])
    assert sums(report)
    assert load(eft=EFT + dull, eft_settings=baseline("scores"))[0] == plain


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_one_file_can_be_both(tmp_path, capsys, share, kept):
    path = tmp_path / "both.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in RANKED) + "{\n")
    settings = config.get_config("scratch").data
    settings.update(ift=str(path), eft=str(path), shared_to_ift=share, max_malformed_frac=0.1)
    if share in (0, 1):
        field = "data.eft" if share else "data.ift"
        with pytest.raises(DataError, match=rf"^{field} .*both\.jsonl\b.*\b0\b.*\b2\b.*data\.shared_to_ift") as error:
            from_files(settings, 0)
        assert "\n" not in str(error.value)
    else:
        sets, report = from_files(settings, 0)
        assert len(sets["ift"]) == kept == report["ift"]["kept"]
        assert len(sets["eft"]) == 3 * (8 - kept)
        assert report["prompts"] == {"ift": kept, "eft": 8 - kept}
        assert sums(report)
        assert "".join(seed_sets.format_report(report)).count("both.jsonl") == 1  # the fault is shown once
    assert capsys.readouterr() == ("", "")


def test_a_report_has_a_line_for_each_set(load):
    rows = [*EFT, {**EFT[0], "language": "de"}, {**EFT[1], "lang": "en-GB"}]
    _, report = load(eft=rows)
    ift, eft, scores, held_out = seed_sets.format_report(report)
    low, high = report["scores"]["lowest"], report["scores"]["highest"]
    assert_mentions(scores, f"{low:g}", f"{high:g}", 0, 5)
    assert_mentions(held_out, *report["heldout"].values(), "data.heldout_prompts", "data.judge_eval_prompts")
    assert re.findall(r"\w+", ift)[0] == "ift"
    assert re.findall(r"\d+", ift) == ["6", "6", "6"]
    assert re.findall(r"\w+", eft)[0] == "eft"
    assert re.findall(r"\d+", eft) == ["50", "1", "1", "24", "24", "8"]
    for count, reason in ((1, "other language"), (1, "duplicate answer"), (24, "held out")):
        assert_mentions(eft, f"{count} {reason}")
    assert_mentions(eft, "data.language", "data.judge_eval_prompts")
    assert sums(report)


def test_judged_rows_of_a_world_share_no_prompt_with_instruction_rows(monkeypatch):
    fresh = seed_sets.generator.eft_rows
    used = world()["ift"][0]["prompt"]
    monkeypatch.setattr(
        seed_sets.generator,
        "eft_rows",
        lambda *args: [{**r, "prompt": used} if i < 3 else r for i, r in enumerate(fresh(*args))],
    )
    settings = config.get_config("micro").data
    sets, report = from_world(settings, 0)
    assert report["eft"]["assigned to ift"] == 3
    assert len(sets["eft"]) == report["eft"]["kept"] == settings.eft_rows - 3
    assert sums(report)
    assert re.findall(r"\d+", seed_sets.format_report(report)[1])[:2] == [str(settings.eft_rows), "3"]


def test_sets_that_share_a_prompt_are_an_internal_error(load, monkeypatch):
    monkeypatch.setattr(seed_sets, "_split_shared_prompts", lambda ift, eft, *_: (ift, eft))
    with pytest.raises(DataError, match=r"^(?!.*data\.)"):  # no setting is at fault
        load(ift=[{"prompt": r["prompt"], "response": "r"} for r in EFT])


@given(
    rng=st.randoms(use_true_random=False),
    num_prompts=st.integers(8, 40),
    share=st.floats(0, 1),
    rating=st.sampled_from(["score", "rank"]),
    source=st.sampled_from(["scores", "baseline"]),
)
def test_no_two_sets_ever_share_a_prompt(tmp_path_factory, rng, num_prompts, share, rating, source):
    folder = tmp_path_factory.mktemp("overlap")
    data = config.get_config("scratch").data
    data.update(ift=str(folder / "i.jsonl"), eft=str(folder / "e.jsonl"), shared_to_ift=share, max_malformed_frac=0.0)
    for path, count in (data.ift, rng.randint(1, 60)), (data.eft, rng.randint(20, 200)):
        rows = [(rng.randrange(num_prompts), rng.randrange(9)) for _ in range(count)]
        # Each prompt has two spellings that are equal after `normalize`.
        lines = [
            {"prompt": f"{'Qq'[r % 2]}uestion {p}{'?' * (r % 2)}", "response": f"{r}", rating: r // 2} for p, r in rows
        ]
        Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        sets, report = from_files(data, rng.randrange(9), baseline(source))
    except DataError as error:
        sets, fault = {}, str(error)
    if not sets:
        event("refused")
        assert re.search(r"^data\.(ift|eft)\b", fault)
        return
    judged = "eft" if source == "scores" else "eft_answers"
    groups = [["ift"], [judged], ["validation", "ranked_validation"], ["heldout", "ranked_heldout"]]
    by_group = [prompts(sets, *group) for group in groups]
    assert sum(map(len, by_group)) == len(set.union(*by_group))
    assert sums(report)


# --- real files ------------------------------------------------------------------------------------------------


def real(ift, eft, seed=0, **changed):
    for name in (ift, eft):
        if not (DATA / name).exists():
            pytest.skip("no real data next to the repository")
    data = config.get_config("scratch").data
    data.update(ift=str(DATA / ift), eft=str(DATA / eft), **changed)
    sets, report = from_files(data, seed)
    assert sums(report)
    assert not prompts(sets, "ift") & prompts(sets, "eft")
    assert not prompts(sets, *HELD_OUT) & prompts(sets, *TRAINING)
    assert all(report[name]["malformed"] == 0 for name in TRAINING)
    return sets, report


def test_open_assistant_files_can_be_used():
    sets, report = real("oasst/ift_seed.jsonl", "oasst/eft_ranked.jsonl")
    assert report["ift"]["read"] == 761
    assert report["eft"]["read"] == 2392
    assert report["eft"]["duplicate answer"] == 2
    assert len(sets["ift"]) == 761 - 240 - report["ift"]["assigned to eft"] == 298
    assert len(sets["eft"]) == 778
    assert (
        len(sets["ranked_heldout"])
        == len(sets["ranked_validation"])
        == config.get_config("scratch").data.judge_eval_prompts
    )
    assert {row["score"] for row in sets["eft"]} == set(range(6))


def test_open_assistant_trees_can_be_used_alone():
    sets, report = real("oasst/oa_en_100_tree.jsonl", "oasst/oa_en_100_tree.jsonl")
    assert report["records"] == {"ift": 100, "eft": 100}
    assert report["ift"]["read"] == report["eft"]["read"] == 687
    assert report["ift"]["later turn"] == 354
    assert report["eft"]["no score"] == 3
    assert report["prompts"] == {"ift": 27, "eft": 25}
    assert len(sets["heldout"]) == len(sets["validation"]) == 24


def test_tied_pairs_are_dropped():
    sets, report = real("self_instruct/seed_tasks.jsonl", "ultrafeedback/ultrafeedback_1k.jsonl")
    assert len(sets["ift"]) == 175
    assert report["eft"]["pair of equal texts"] == 2 * 4
    assert report["eft"]["pair of equal scores"] == 2 * 110  # 111 are tied, one of them of equal texts
    assert report["eft"]["empty text"] == 2
    assert report["scores"] == {"lowest": 1, "highest": 10}


def test_questions_and_answers_are_instruction_rows():
    sets, _ = real("gsm8k/train.jsonl", "oasst/eft_ranked.jsonl")
    assert len(sets["ift"]) == 7473
    assert sets["ift"][0]["prompt"].startswith("Natalia sold clips")


def test_the_same_files_give_the_same_bytes():
    def text():
        return json.dumps(real("oasst/ift_seed.jsonl", "oasst/eft_ranked.jsonl", seed=3), sort_keys=True)

    assert text() == text()


@pytest.mark.parametrize("score", range(6))
def test_a_one_line_judgment_ends_with_its_score(score):
    assert PARSERS["points"](seed_sets.one_line_judgment(score)) == score
    assert PARSERS["choice"](seed_sets.one_line_judgment(score, "choice")) == max(1, score)


def test_a_judgment_made_from_a_score_is_a_choice_where_the_judge_chooses(load):
    sets, _ = load(output_format="choice")
    points, _ = load()
    assert [r["score"] for r in sets["eft"]] == [r["score"] for r in points["eft"]]
    assert all(r["judgment"].endswith(f"Choice: {'AABCDE'[r['score']]}") for r in sets["eft"])
