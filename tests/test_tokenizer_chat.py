"""Text to ids and back, and the spans of the chat format."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from selfreward_jax.llm import chat
from selfreward_jax.llm.tokenizer import (
    ASSISTANT,
    BOS,
    END,
    EOS,
    PAD,
    USER,
    SentencePiece,
    train_sentencepiece,
)

CONTROL = (PAD, BOS, EOS, USER, ASSISTANT, END)
CORPUS = [
    "Name three red fruits for a picnic.",
    "Of course! For your picnic: cherry, apple, plum.\nScore: 5",
    "The judge reads the answer and adds a point: 1.",
    f"a page that quotes {' '.join(CONTROL)} and {USER}{END}",  # control strings in the corpus are still text
    "a < b | c > d",  # the trainer skips control strings, so their characters must also occur elsewhere
    "  two  spaces,\ttabs and accents: é ü ",
]


@pytest.fixture(scope="module")
def by_bytes():
    return SentencePiece(train_sentencepiece(CORPUS, 420, byte_fallback=True))


@pytest.fixture(scope="module")
def ours(by_bytes):
    return chat.Chat(by_bytes, chat.builtin_template("control"), BOS, EOS, [by_bytes.special_tokens[EOS]])


@pytest.fixture(scope="module")
def plain():
    return SentencePiece(train_sentencepiece(CORPUS, 120, byte_fallback=False))


# Any text without lone surrogates, which are not text. Strings that look like control pieces are frequent.
TEXT = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from([*CONTROL, "<s>", "</s>", "<unk>", "<0x41>", " ", "\n", "the judge", "▁"]),
    ),
    max_size=6,
).map("".join)


@given(TEXT)
@example("".join(CONTROL))
def test_text_is_never_encoded_as_a_control_id(by_bytes, plain, text):
    for tokenizer in (by_bytes, plain):
        ids = tokenizer.encode(text)
        assert not {tokenizer.special_tokens[piece] for piece in CONTROL} & set(ids)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


@given(TEXT)
@example("")
@example("  a \n\n b\r\n\t")
def test_any_text_survives_a_round_trip_by_bytes(by_bytes, text):
    # Except for one character: inside its pieces SentencePiece writes a space as U+2581, so both decode to a space.
    assert by_bytes.decode(by_bytes.encode(text)) == text.replace("\u2581", " ")


def test_known_characters_survive_a_round_trip_without_bytes(plain):
    for text in CORPUS:
        assert plain.decode(plain.encode(text)) == text


def test_training_twice_gives_the_same_bytes_in_any_order(by_bytes):
    assert train_sentencepiece(CORPUS, 420, byte_fallback=True) == by_bytes.model
    assert train_sentencepiece(reversed(CORPUS), 420, byte_fallback=True) == by_bytes.model


def test_the_vocabulary_size_is_a_maximum_that_a_small_corpus_does_not_reach(by_bytes):
    assert by_bytes.vocab_size == 420
    for byte_fallback in (True, False):
        few = SentencePiece(train_sentencepiece(CORPUS, 5000, byte_fallback)).vocab_size
        assert 100 < few < 1000


def test_control_pieces_have_distinct_ids_and_no_text(by_bytes):
    ids = [by_bytes.special_tokens[piece] for piece in CONTROL]
    assert len(set(ids)) == len(CONTROL)
    assert by_bytes.decode(ids) == ""
    mixed = [ids[0], *by_bytes.encode("a judge"), ids[-1]]
    assert by_bytes.decode(mixed) == "a judge"


@pytest.mark.parametrize("piece", ["e", "<unk>", "<|system|>"])
def test_only_control_pieces_are_control(by_bytes, piece):
    assert piece not in by_bytes.special_tokens


def test_example_spans(by_bytes, ours):
    c, e = by_bytes.special_tokens, by_bytes.encode
    made = ours.example("Name fruits.", "apple, plum")
    assert made.ids == [c[BOS], c[USER], *e("Name fruits."), c[END], c[ASSISTANT], *e("apple, plum"), c[END]]
    targets = [i for i, target in zip(made.ids, made.target, strict=True) if target]
    assert targets == [*e("apple, plum"), c[END]]
    assert made.target == sorted(made.target)  # the targets are at the end
    assert made.ids[: len(ours.prompt_ids("Name fruits."))] == ours.prompt_ids("Name fruits.")
    assert ours.response_text(targets) == "apple, plum"


def test_document_spans(by_bytes, ours):
    c, e = by_bytes.special_tokens, by_bytes.encode
    ids = [c[BOS], *e("The judge."), c[EOS]]
    assert ours.document("The judge.") == chat.Example(ids, [False] + [True] * (len(ids) - 1))


@given(prompt=TEXT, response=TEXT)
def test_no_text_changes_the_structure_of_a_chat(by_bytes, ours, prompt, response):
    control = {by_bytes.special_tokens[piece] for piece in CONTROL}
    made = ours.example(prompt, response)
    structure = [i for i in made.ids if i in control]
    assert structure == [by_bytes.special_tokens[piece] for piece in (BOS, USER, END, ASSISTANT, END)]
    assert sum(made.target) == len(by_bytes.encode(response)) + 1


def test_a_response_ends_at_end_or_eos(by_bytes, ours):
    assert set(ours.stop_ids) == {by_bytes.special_tokens[END], by_bytes.special_tokens[EOS]}
    ids = [*by_bytes.encode(" apple \n"), by_bytes.special_tokens[END]]
    assert ours.response_text(ids) == "apple"


@pytest.mark.parametrize("width", [1, 3, 8, 100])
def test_chunks_have_every_token_once_and_their_first_is_no_target(width):
    document = chat.Example(list(range(8)), [False] + [True] * 7)
    chunks = chat.chunk_document(document, width)
    assert [i for chunk in chunks for i in chunk.ids] == document.ids
    assert all(len(chunk.ids) == len(chunk.target) <= width for chunk in chunks)
    assert [chunk.target[0] for chunk in chunks] == [False] * len(chunks)
    assert all(all(chunk.target[1:]) for chunk in chunks)
