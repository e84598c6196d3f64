"""Seed sets: from the embedded world and from a user's files."""

import json
from pathlib import Path
from random import Random

import pytest

from selfreward_jax import config
from selfreward_jax.method import seeds
from selfreward_jax.method.judge import parse_score
from selfreward_jax.method.new_prompts import normalise
from selfreward_jax.method.seeds import SeedError, from_files, from_world

OASST = Path(__file__).parents[1].parent / "shared" / "data" / "oasst"
TRAINING = ("ift", "eft")
HELD_OUT = ("validation", "heldout", "ranked_validation", "ranked_heldout")


def prompts(sets, *names):
    return {normalise(row["prompt"]) for name in names for row in sets[name]}


# --- the embedded world ----------------------------------------------------------------------------------------


def world(seed=0, **changed):
    settings = config.get("micro").data
    settings.update(changed)
    return from_world(settings, seed)[0]


def test_a_world_is_a_function_of_its_seed():
    first, again, other = world(0), world(0), world(1)
    assert first == again
    for name, rows in first.items():
        assert rows != other[name], name


def test_sizes_are_those_asked_for():
    sets = world(ift_rows=5, eft_rows=6, documents=7, heldout_prompts=8, ranked_prompts=3, ranked_answers=4)
    sizes = {name: len(rows) for name, rows in sets.items()}
    assert sizes == {"ift": 5, "eft": 6, "documents": 7, **dict.fromkeys(HELD_OUT, 8), **dict.fromkeys(HELD_OUT[2:], 3)}
    assert all(len(row["answers"]) == 4 for row in sets["ranked_heldout"])


def test_the_size_of_one_set_leaves_the_others():
    small, large = world(ift_rows=10), world(ift_rows=20)
    assert large["ift"][:10] == small["ift"]
    for name in ("eft", "documents", "ranked_validation", "ranked_heldout"):
        assert small[name] == large[name], name


def test_held_out_prompts_of_a_world_are_not_trained_on(monkeypatch):
    # So many requests exist that few repeat by chance: offer training prompts and repeats on purpose.
    taken = [row["prompt"] for name in TRAINING for row in world()[name]][:4]
    fresh = seeds.lists.prompts
    monkeypatch.setattr(seeds.lists, "prompts", lambda count, rng: [*taken, *fresh(count, Random("same"))])
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
    """Writes rows (or lines, as they are) to two files and reads them as seeds."""

    def run(ift=IFT, eft=EFT, seed=0, **changed):
        settings = config.get("scratch").data
        settings.update(ift=str(tmp_path / "ift.jsonl"), eft=str(tmp_path / "eft.jsonl"), **changed)
        for path, rows in (settings.ift, ift), (settings.eft, eft):
            lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
            Path(path).write_bytes("".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape"))
        return from_files(settings, seed)

    return run


def test_every_accepted_form_gives_the_same_sets(load):
    expected, _ = load()
    for i in range(max(map(len, seeds.NAMES.values()))):
        renamed = {field: names[i % len(names)] for field, names in seeds.NAMES.items()}
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
    assert load(ift=["", *IFT, "  "], eft=[*EFT, ""], most_bad=0.0)[0] == load()[0]


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
        assert parse_score(row["judgement"]) == row["score"]
    assert {0, 5} <= set(mapped.values())


def test_held_out_prompts_of_files_are_not_trained_on(load):
    # The same prompts stand in both files, with other capitals and marks.
    ift = [{"prompt": r["prompt"].upper() + "?", "response": "done"} for r in EFT] + IFT
    sets, report = load(ift=ift)
    held_out = prompts(sets, *HELD_OUT)
    assert len(held_out) == 8
    assert not held_out & prompts(sets, *TRAINING)
    assert not prompts(sets, "ranked_validation") & prompts(sets, "ranked_heldout")
    texts = [normalise(row["text"]) for row in sets["documents"]]
    assert not any(text.startswith(p + " ") for text in texts for p in held_out)
    assert report["ift"]["held_out"] == 8 * 3
    # Nothing else is lost: each judged row is trained on or held out.
    held = [a["response"] for name in ("ranked_validation", "ranked_heldout") for r in sets[name] for a in r["answers"]]
    assert sorted(held + [r["response"] for r in sets["eft"]]) == sorted(r["response"] for r in EFT)


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


def test_a_limit_holds_nothing_out(load):
    assert load(ift_rows=3)[1]["ift"]["held_out"] == 0


MALFORMED = [
    ("{'prompt': 1}", "not JSON"),
    ("[1, 2]", "not a JSON object"),
    ('"text"', "not a JSON object"),
    ({"prompt": "p", "score": 1}, "response is None, not a text"),
    ({"response": "r", "score": 1}, "prompt is None, not a text"),
    ({"prompt": " ", "response": "r", "score": 1}, "prompt is ' ', not a text"),
    ({"prompt": "p", "response": "", "score": 1}, "response is '', not a text"),
    ({"prompt": ["p"], "response": "r", "score": 1}, r"prompt is \['p'\], not a text"),
    ({"prompt": "p", "response": "r"}, "score is None, not a number"),
    ({"prompt": "p", "response": "r", "score": "4"}, "score is '4', not a number"),
    ({"prompt": "p", "response": "r", "score": True}, "score is True, not a number"),
    ({"prompt": "p", "response": "r", "score": float("nan")}, "score is nan, not a number"),
    ({"prompt": "p", "answers": "r"}, "answers is not a list of objects"),
    ({"prompt": "p", "answers": ["r"]}, "answers is not a list of objects"),
    ({"prompt": "p", "answers": [{"response": "r"}]}, "score is None, not a number"),
    ({"prompt": "p", "response": "r", "score": float("inf")}, "score is inf, not a number"),
]


@pytest.mark.parametrize(("row", "fault"), MALFORMED)
def test_a_malformed_row_is_named_or_left_out(load, capsys, row, fault):
    eft = [*EFT[:2], row, *EFT[2:]]
    with pytest.raises(SeedError, match=rf"eft\.jsonl line 3: {fault}.*1 of {len(eft)} rows.*data\.most_bad") as error:
        load(eft=eft, most_bad=0.5 / len(eft))
    assert "\n" not in str(error.value)
    sets, report = load(eft=eft, most_bad=1.5 / len(eft))
    assert sets == load()[0]
    assert report["eft"]["malformed"] == 1
    assert "eft.jsonl line 3" in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path):
    settings = config.get("scratch").data
    settings.update(ift=str(tmp_path / "none.jsonl"), eft=str(tmp_path / "none.jsonl"))
    with pytest.raises(SeedError, match=r"none\.jsonl cannot be read"):
        from_files(settings, 0)


def test_a_folder_is_refused(tmp_path):
    settings = config.get("scratch").data
    settings.update(ift=str(tmp_path), eft=str(tmp_path))
    with pytest.raises(SeedError):
        from_files(settings, 0)


def test_an_empty_file_is_named(load):
    with pytest.raises(SeedError, match=r"ift\.jsonl is empty"):
        load(ift=[])


def test_one_score_for_all_is_refused(load):
    with pytest.raises(SeedError, match=r"data\.eft .*eft\.jsonl: every score is 3;"):
        load(eft=[{**r, "score": 3} for r in EFT])


def test_too_few_rows_are_refused_with_their_numbers(load):
    with pytest.raises(SeedError, match=r"leave 1 instruction rows, .* judged rows and 4 held-out prompts"):
        load(ift=IFT[:1])
    with pytest.raises(SeedError, match="1 held-out prompts"):
        load(eft=EFT[: 3 * 4])


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\x7f\u2029"])
def test_unicode_line_separators_inside_a_text_are_text(load, mark):
    ift = [*IFT, {"prompt": f"one{mark}two", "response": "done"}]
    assert load(ift=ift, most_bad=0.0)[0]["ift"][-1]["prompt"] == ift[-1]["prompt"]


def test_a_file_that_is_not_utf_8_is_refused(load):
    with pytest.raises(SeedError):
        load(ift=[*IFT, '{"prompt": "caf\udce9", "response": "done"}'], most_bad=0.0)


# --- rows made of them -----------------------------------------------------------------------------------------


def test_prompt_rows_ask_for_a_prompt_that_they_do_not_show():
    known = [f"request {chr(97 + i)}" for i in range(6)]
    rows = seeds.prompt_rows(known, 20, 3, "{examples}", Random(0))
    for row in rows:
        shown = [line.removeprefix("- ") for line in row["prompt"].splitlines()]
        assert len({*shown, row["response"]}) == 4
        assert {*shown, row["response"]} <= set(known)
    assert len({row["response"] for row in rows}) > 1


def test_judge_rows_answer_the_judges_prompt_with_the_judgement():
    eft = [{"prompt": "p", "response": "r", "judgement": "Score: 4", "score": 4}]
    assert seeds.judge_rows(eft, lambda p, r: f"<{p}|{r}>") == [{"prompt": "<p|r>", "response": "Score: 4"}]


def test_open_assistant_files_can_be_used():
    if not OASST.exists():
        pytest.skip("no Open Assistant files beside the repository")
    settings = config.get("scratch").data
    settings.update(ift=str(OASST / "ift_seed.jsonl"), eft=str(OASST / "eft_ranked.jsonl"))
    sets, report = from_files(settings, 0)
    assert report["ift"]["malformed"] == report["eft"]["malformed"] == 0
    assert len(sets["ift"]) > 500
    assert len(sets["eft"]) > 1000
    assert len(sets["ranked_heldout"]) == len(sets["ranked_validation"]) == settings.ranked_prompts
    assert not prompts(sets, *HELD_OUT) & prompts(sets, *TRAINING)
    assert {row["score"] for row in sets["eft"]} == set(range(6))
