"""New prompts: what counts as new, what is well formed, and how batches are generated."""

import hashlib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.method import prompt_generation
from selfreward_jax.method.prompt_generation import NoveltyFilter, lcs_length, normalize, rejection_reason, rouge_l
from selfreward_jax.sampling.engine import Completion, Request, SamplingParams

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


def lcs_length_by_table(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(WORDS, WORDS)
def test_lcs_length_equals_the_textbook_algorithm(a, b):
    assert lcs_length(a, b) == lcs_length_by_table(a, b)


@given(WORDS, WORDS)
def test_rouge_l_is_the_f1_of_precision_and_recall(a, b):
    common = lcs_length_by_table(a, b)
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
def test_novelty_equals_the_comparison_with_every_known_prompt(known, words, max_rouge):
    text = " ".join(words)
    brute = all(rouge_l(words, k) <= max_rouge for k in known) and words not in known
    assert NoveltyFilter(max_rouge, map(" ".join, known)).is_new(text) == brute


@given(st.lists(st.text(alphabet="aB .,!"), max_size=6), st.text(alphabet="aB .,!"))
def test_a_limit_of_one_rejects_only_equal_prompts(known, text):
    assert NoveltyFilter(1.0, known).is_new(text) == (normalize(text) not in set(map(normalize, known)))


def test_a_prompt_at_the_limit_is_new_and_above_it_is_not():
    known = NoveltyFilter(0.7, ["a b c d e f g 1 2 3"])
    assert known.is_new("a b c d e f g 4 5 6")  # 7 of 10 words in common: exactly 0.7
    assert not known.is_new("a b c d e f g 1 5 6")


@pytest.mark.parametrize("max_rouge", [0.7, 1.0])
def test_an_added_prompt_is_no_longer_new(max_rouge):
    novelty = NoveltyFilter(max_rouge)
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
        ("Name two birds\nand three fish.", "list or several lines"),
        ("- Name two birds please.", "list or several lines"),
        ("!Name two birds please.", "starts with punctuation"),
        ("Show me a Picture of birds.", "asks for non-text content"),
        ("Show me two maps, please.", "asks for non-text content"),
        ("Name two mapmakers for me.", None),  # only complete words are rejected
    ],
)
def test_form_of_a_prompt(text, fault):
    assert rejection_reason(text, SimpleNamespace(min_words=4, max_words=10, multiline=False)) == fault
    in_lines = None if "\n" in text else fault
    assert rejection_reason(text, SimpleNamespace(min_words=4, max_words=10, multiline=True)) == in_lines


# --- batches -----------------------------------------------------------------------------------------------------

SEEDS = [f"seed request number s{i}" for i in range(8)]
GENERATED = [f"own earlier request o{i}" for i in range(4)]
SETTINGS = {"count": 5, "batch_size": 3, "max_attempts": 12, "num_seed_examples": 3, "num_generated_examples": 2}
SETTINGS |= {"max_rouge": 1.0, "min_words": 1, "max_words": 20, "multiline": False}
SAMPLING_PARAMS = SamplingParams(num_samples=1, temperature=1.0, top_p=1.0, max_new_tokens=8)


def written(request):
    """A new request that depends on the row's id and on all examples."""
    return f"a new request {hashlib.sha256(repr(tuple(request)).encode()).hexdigest()}"


class Writer:
    """An engine that answers by a function of the request."""

    def __init__(self, text=written, finished=lambda request: True):
        self.text, self.finished, self.requests = text, finished, []

    def fits(self, prompt, max_new_tokens):
        return True

    def generate(self, requests, sampling_params, key):
        self.requests += requests
        return [Completion(r.id, 0, self.text(r), [7, 7], [], self.finished(r)) for r in requests]


def write(engine, *, generated=(), partial=(), on_batch=lambda batch: None):
    return prompt_generation.generate_prompts(
        engine,
        SimpleNamespace(**SETTINGS),
        SAMPLING_PARAMS,
        None,
        prompt_generation.PromptInputs(
            template="Write one more:\n{examples}",
            seed_prompts=SEEDS,
            generated_prompts=generated,
            forbidden=SEEDS,
            id_prefix="m2",
            seed=0,
        ),
        partial=list(partial),
        on_batch=on_batch,
    )


def examples(request):
    return [line.removeprefix("- ") for line in request.prompt.splitlines()[1:]]


def test_complete_batches_are_written_until_enough_are_accepted():
    batches = []
    rows = write(Writer(), on_batch=batches.append)
    assert [len(batch) for batch in batches] == [3, 3]
    assert [row for batch in batches for row in batch] == rows
    assert [row["fault"] for row in rows] == [None] * 5 + ["not needed"]
    assert [row["id"] for row in rows] == [f"m2/{i}" for i in range(6)]
    assert all(row["tokens"] == 2 for row in rows)


def test_generation_ends_after_max_attempts():
    rows = write(Writer(text=lambda request: "the same each time"))
    assert len(rows) == 12
    assert [row["fault"] for row in rows] == [None] + ["duplicate"] * 11


def test_repeated_seeds_are_not_new():
    rows = write(Writer(text=lambda request: next(s for s in examples(request) if s in SEEDS).upper() + "!"))
    assert {row["fault"] for row in rows} == {"duplicate"}


def test_empty_and_unfinished_texts_are_rejected():
    assert {row["fault"] for row in write(Writer(text=lambda request: ""))} == {"too short"}
    assert {row["fault"] for row in write(Writer(finished=lambda request: False))} == {"unfinished"}


def test_a_few_shot_prompt_has_the_configured_number_of_examples():
    engine = Writer()
    write(engine, generated=GENERATED)
    for request in engine.requests[:3]:  # the first batch has only generated prompts of earlier rounds
        assert len(set(examples(request))) == 5
        assert sum(s in SEEDS for s in examples(request)) == 3
        assert sum(s in GENERATED for s in examples(request)) == 2


def test_examples_of_several_lines_are_between_marks():
    examples = ["Sort these:\n- a\n- b", "Write {} here."]
    assert prompt_generation.few_shot_prompt("More:\n{examples}\nOne more:", examples, multiline=True) == (
        "More:\n<request>\nSort these:\n- a\n- b\n</request>\n<request>\nWrite {} here.\n</request>\nOne more:"
    )
    assert prompt_generation.few_shot_prompt("{examples}", ["a", "b"]) == "- a\n- b"


def test_seeds_replace_generated_prompts_until_there_are_any():
    engine = Writer()
    rows = write(engine)
    first, second = engine.requests[:3], engine.requests[3:]
    assert all(len(set(examples(r))) == 5 and set(examples(r)) <= set(SEEDS) for r in first)
    accepted = {row["prompt"] for row in rows[:3]}
    assert all(len(accepted & set(examples(r))) == 2 for r in second)


def test_examples_differ_between_the_rows_of_a_batch():
    engine = Writer()
    write(engine)
    assert len({tuple(examples(r)) for r in engine.requests[:3]}) == 3


@pytest.mark.parametrize("num_batches", [1, 2, 3])
def test_resuming_from_complete_batches_gives_the_same_rows(num_batches):
    def some_rejected(request):
        return SEEDS[0] if int(request.id.split("/")[1]) % 3 == 1 else written(request)

    uninterrupted = write(Writer(some_rejected), generated=GENERATED)
    assert len(uninterrupted) == 9
    new = []
    resumed = write(
        Writer(some_rejected), generated=GENERATED, partial=uninterrupted[: 3 * num_batches], on_batch=new.extend
    )
    assert resumed == uninterrupted
    assert new == uninterrupted[3 * num_batches :]


def test_the_last_batch_is_as_large_as_it_has_to_be():
    settings = SimpleNamespace(count=300, batch_size=256, max_attempts=400)
    attempts = lambda good, bad: [{"fault": None}] * good + [{"fault": "duplicate"}] * bad  # noqa: E731
    assert prompt_generation.next_batch_size([], settings) == 256
    assert prompt_generation.next_batch_size(attempts(0, 100), settings) == 256
    # 60 are missing, and of 256 attempts 240 were accepted: 64 attempts, a tenth and 16 more.
    assert prompt_generation.next_batch_size(attempts(240, 16), settings) == 71 + 16
    assert prompt_generation.next_batch_size(attempts(128, 128), settings) == 144  # up to max_attempts
    whole = [*attempts(240, 16), *attempts(60, 27)]
    for rows in (whole, whole[:-1], whole[:256], whole[:255]):
        kept = len(whole) if rows is whole else 256 if len(rows) > 255 else 0
        assert len(prompt_generation.whole_batches(rows, settings)) == kept


def test_a_few_shot_prompt_that_is_too_long_gets_fewer_examples():
    engine = Writer()
    engine.fits = lambda prompt, max_new_tokens: prompt.count("\n- ") <= 2
    write(engine)
    assert all(r.prompt.count("\n- ") == 2 for r in engine.requests)


# --- a pool of prompts -----------------------------------------------------------------------------------------------


def test_a_pool_gives_each_of_its_prompts_once_in_the_order_of_its_seed():
    pool = prompt_generation.PromptPool([f"prompt {i}" for i in range(5)], "0 m2")
    requests = [Request(f"m2/{i}", "") for i in range(7)]
    made = pool.generate(requests, None, None)
    assert sorted(c.text for c in made) == [f"prompt {i}" for i in range(5)]
    assert [c.id for c in made] == [f"m2/{i}" for i in range(5)]
    again = prompt_generation.PromptPool([f"prompt {i}" for i in range(5)], "0 m2").generate(requests[3:], None, None)
    assert [c.text for c in again] == [c.text for c in made[3:]]
