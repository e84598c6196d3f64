"""Templates: filled in one pass, rejected with a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.method.templates import TemplateError, fill, load


def test_a_value_that_contains_a_slot_is_not_filled():
    filled = fill("Request: {prompt}\nAnswer: {response}", prompt="say {response}", response="{prompt} \\1 {}")
    assert filled == "Request: say {response}\nAnswer: {prompt} \\1 {}"


@given(st.text(), st.text())
def test_values_are_inserted_unchanged(a, b):
    assert fill("<{a}|{b}|{a}>", a=a, b=b) == f"<{a}|{b}|{a}>"


def test_an_unknown_slot_is_left_in_place():
    assert fill("{known} {unknown} {not a slot}", known="x") == "x {unknown} {not a slot}"


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        ("judge_short", {"prompt", "response"}),
        ("judge_additive", {"prompt", "response"}),
        ("judge_choice", {"prompt", "response"}),
        ("judge_pairwise", {"prompt", "first", "second"}),
        ("new_prompt", {"examples"}),
    ],
)
def test_packaged_templates_have_their_slots(name, slots):
    template = load(name, slots)
    assert not template.endswith("\n")
    filled = fill(template, **{slot: f"<{slot} value>" for slot in slots})
    assert all(f"<{slot} value>" in filled for slot in slots)


def test_a_path_is_the_users_own_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Judge: {prompt} {response}\n\n")
    assert load(str(path), {"prompt", "response"}) == "Judge: {prompt} {response}"


def test_a_missing_slot_is_named(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Judge: {prompt}")
    with pytest.raises(TemplateError, match=r"mine\.txt\b.*\{response\}"):
        load(str(path), {"prompt", "response"})


def test_an_unknown_name_is_refused_with_the_known_names():
    known = (
        "judge_additive, judge_choice, judge_pairwise, judge_pairwise_short, judge_short, meta_judge, meta_judge_short"
    )
    with pytest.raises(TemplateError, match=rf"'jugde_short'.*{known}, new_prompt"):
        load("jugde_short", set())


@pytest.mark.parametrize("name", ["", "FOLDER"])
def test_a_folder_is_no_template(name, tmp_path):
    with pytest.raises(TemplateError):
        load(name.replace("FOLDER", str(tmp_path)), set())
