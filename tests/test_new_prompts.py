"""New prompts: what counts as new, what is well formed, and how the waves run."""

import hashlib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.method import prompt_generation
from selfreward_jax.method.prompt_generation import NoveltyFilter, lcs_length, normalize, rejection_reason, rouge_l
from selfreward_jax.sampling.engine import Completion, SamplingParams

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


def longest_common_plain(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(WORDS, WORDS)
def test_longest_common_is_the_textbook_one(a, b):
    assert lcs_length(a, b) == longest_common_plain(a, b)


@given(WORDS, WORDS)
def test_rouge_l_is_the_f1_of_its_two_shares(a, b):
    common = longest_common_plain(a, b)
    if common:
        precision, recall = common / len(a), common / len(b)
        assert rouge_l(a, b) == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert rouge_l(a, b) == 0
    assert rouge_l(a, b) == rouge_l(b, a)
    assert rouge_l(a, a) == (1 if a else 0)


def test_rouge_l_by_hand():
    assert rouge_l(["name", "two", "birds"], ["name", "four", "birds", "please"]) == pytest.approx(4 / 7)
    assert rouge_l(["a", "b"], ["b", "a"]) == 0.5  # order counts


@given(st.lists(WORDS, max_size=8), WORDS, st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9]))
def test_novelty_is_what_comparing_with_every_known_prompt_says(known, words, most):
    text = " ".join(words)
    brute = all(rouge_l(words, k) <= most for k in known) and words not in known
    assert NoveltyFilter(most, map(" ".join, known)).is_new(text) == brute


@given(st.lists(st.text(alphabet="aB .,!"), max_size=6), st.text(alphabet="aB .,!"))
def test_novelty_of_one_refuses_only_the_same_words(known, text):
    assert NoveltyFilter(1.0, known).is_new(text) == (normalize(text) not in set(map(normalize, known)))


def test_at_the_limit_is_new_and_above_it_is_not():
    known = NoveltyFilter(0.7, ["a b c d e f g 1 2 3"])
    assert known.is_new("a b c d e f g 4 5 6")  # 7 of 10 words in common: exactly 0.7
    assert not known.is_new("a b c d e f g 1 5 6")


@pytest.mark.parametrize("most", [0.7, 1.0])
def test_what_was_added_is_no_longer_new(most):
    novelty = NoveltyFilter(most)
    assert novelty.is_new("Name two birds.")
    novelty.add("Name two birds.")
    assert not novelty.is_new("name TWO birds!")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Name two birds for me, please.", None),
        ("2 birds for my garden?", None),
        ("Name birds.", "too short"),
        ("", "too short"),
        ("name " * 11, "too long"),
        ("Name two birds\nand three fish.", "a list, not one request"),
        ("- Name two birds please.", "a list, not one request"),
        ("!Name two birds please.", "begins with a mark"),
        ("Show me a Picture of birds.", "asks for what text cannot give"),
        ("Show me two maps, please.", "asks for what text cannot give"),
        ("Name two mapmakers for me.", None),  # only whole words are unfit
    ],
)
def test_form_of_a_prompt(text, fault):
    assert rejection_reason(text, min_words=4, max_words=10) == fault


# --- waves -----------------------------------------------------------------------------------------------------

SEEDS = [f"seed request number s{i}" for i in range(8)]
OWN = [f"own earlier request o{i}" for i in range(4)]
SETTINGS = {"count": 5, "wave": 3, "most_attempts": 12, "seed_shots": 3, "own_shots": 2}
SETTINGS |= {"most_rouge": 1.0, "least_words": 1, "most_words": 20}
HOW = SamplingParams(num_samples=1, temperature=1.0, top_p=1.0, max_new_tokens=8)


def written(request):
    """A new request that depends on the row's id and on everything shown."""
    return f"a new request {hashlib.sha256(repr(tuple(request)).encode()).hexdigest()}"


class Writer:
    """An engine that answers by a function of the request."""

    def __init__(self, text=written, finished=lambda request: True):
        self.text, self.finished, self.asked = text, finished, []

    def fits(self, prompt, max_new):
        return True

    def generate(self, requests, how, key):
        self.asked += requests
        return [Completion(r.id, 0, self.text(r), [7, 7], [], self.finished(r)) for r in requests]


def write(engine, *, own=(), begun=(), keep=lambda wave: None):
    return prompt_generation.generate_prompts(
        engine,
        SimpleNamespace(**SETTINGS),
        "Write one more:\n{examples}",
        HOW,
        None,
        seed_prompts=SEEDS,
        generated_prompts=own,
        forbidden=SEEDS,
        name="m2",
        seed=0,
        partial=list(begun),
        on_batch=keep,
    )


def shown(request):
    return [line.removeprefix("- ") for line in request.prompt.splitlines()[1:]]


def test_writes_whole_waves_until_enough_are_accepted():
    waves = []
    rows = write(Writer(), keep=waves.append)
    assert [len(wave) for wave in waves] == [3, 3]
    assert [row for wave in waves for row in wave] == rows
    assert [row["fault"] for row in rows] == [None] * 5 + ["not needed"]
    assert [row["id"] for row in rows] == [f"m2/{i}" for i in range(6)]
    assert all(row["tokens"] == 2 for row in rows)


def test_gives_up_after_the_most_attempts():
    rows = write(Writer(text=lambda request: "the same each time"))
    assert len(rows) == 12
    assert [row["fault"] for row in rows] == [None] + ["not new"] * 11


def test_seeds_given_back_are_not_new():
    rows = write(Writer(text=lambda request: next(s for s in shown(request) if s in SEEDS).upper() + "!"))
    assert {row["fault"] for row in rows} == {"not new"}


def test_empty_and_unfinished_texts_are_refused():
    assert {row["fault"] for row in write(Writer(text=lambda request: ""))} == {"too short"}
    assert {row["fault"] for row in write(Writer(finished=lambda request: False))} == {"unfinished"}


def test_shows_as_many_seeds_and_own_prompts_as_asked():
    engine = Writer()
    write(engine, own=OWN)
    for request in engine.asked[:3]:  # the first wave knows only the earlier own prompts
        assert len(set(shown(request))) == 5
        assert sum(s in SEEDS for s in shown(request)) == 3
        assert sum(s in OWN for s in shown(request)) == 2


def test_seeds_stand_in_for_own_prompts_until_there_are_any():
    engine = Writer()
    rows = write(engine)
    first, second = engine.asked[:3], engine.asked[3:]
    assert all(len(set(shown(r))) == 5 and set(shown(r)) <= set(SEEDS) for r in first)
    accepted = {row["prompt"] for row in rows[:3]}
    assert all(len(accepted & set(shown(r))) == 2 for r in second)


def test_examples_differ_from_row_to_row_of_a_wave():
    engine = Writer()
    write(engine)
    assert len({tuple(shown(r)) for r in engine.asked[:3]}) == 3


@pytest.mark.parametrize("waves", [1, 2, 3])
def test_going_on_from_whole_waves_gives_the_same_rows(waves):
    def some_refused(request):
        return SEEDS[0] if int(request.id.split("/")[1]) % 3 == 1 else written(request)

    whole = write(Writer(some_refused), own=OWN)
    assert len(whole) == 9
    kept = []
    resumed = write(Writer(some_refused), own=OWN, begun=whole[: 3 * waves], keep=kept.extend)
    assert resumed == whole
    assert kept == whole[3 * waves :]


def test_a_few_shot_prompt_that_leaves_no_room_shows_fewer_examples():
    engine = Writer()
    engine.fits = lambda prompt, max_new: prompt.count("\n- ") <= 2
    write(engine)
    assert all(r.prompt.count("\n- ") == 2 for r in engine.asked)
