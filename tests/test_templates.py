"""Templates: filled in one pass, refused with a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.method.templates import TemplateError, fill, load


def test_a_value_that_holds_a_place_stays_as_it_is():
    filled = fill("Request: {prompt}\nAnswer: {response}", prompt="say {response}", response="{prompt} \\1 {}")
    assert filled == "Request: say {response}\nAnswer: {prompt} \\1 {}"


@given(st.text(), st.text())
def test_values_come_through_letter_by_letter(a, b):
    assert fill("<{a}|{b}|{a}>", a=a, b=b) == f"<{a}|{b}|{a}>"


def test_an_unknown_place_stays():
    assert fill("{known} {unknown} {not a place}", known="x") == "x {unknown} {not a place}"


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("judge_short", {"prompt", "response"}),
        ("judge_additive", {"prompt", "response"}),
        ("judge_choice", {"prompt", "response"}),
        ("judge_pairwise", {"prompt", "first", "second"}),
        ("new_prompt", {"examples"}),
    ],
)
def test_packaged_templates_have_their_places(name, places):
    template = load(name, places)
    assert not template.endswith("\n")
    filled = fill(template, **{place: f"<{place} value>" for place in places})
    assert all(f"<{place} value>" in filled for place in places)


def test_a_path_is_the_readers_own_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Judge: {prompt} {response}\n\n")
    assert load(str(path), {"prompt", "response"}) == "Judge: {prompt} {response}"


def test_a_missing_place_is_named(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Judge: {prompt}")
    with pytest.raises(TemplateError, match=r"mine\.txt\b.*\{response\}"):
        load(str(path), {"prompt", "response"})


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(
        TemplateError, match=r"'jugde_short'.*judge_additive, judge_choice, judge_pairwise, judge_short, new_prompt"
    ):
        load("jugde_short", set())


@pytest.mark.parametrize("name", ["", "FOLDER"])
def test_a_folder_is_no_template(name, tmp_path):
    with pytest.raises(TemplateError):
        load(name.replace("FOLDER", str(tmp_path)), set())
