"""The kinds of instruction, and how a request words them.

A phrasing has at most one slot: {n} is a number from two to four in words, {number} a number in digits, {text} a word
or a phrase. Generator and oracle share these words and nothing else.
"""

from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of instruction.

    phrasings: what a request may say.
    group: a request has at most one instruction of a group, because two may contradict each other.
    """

    phrasings: tuple[str, ...]
    group: str


KINDS = {
    "lowercase": Kind(
        (
            "Write everything in lowercase letters.",
            "Use lowercase letters only.",
            "Do not use capital letters.",
        ),
        "case",
    ),
    "capitals": Kind(
        (
            "Write everything in capital letters.",
            "Use capital letters only.",
            "Your whole answer must be in capitals.",
        ),
        "case",
    ),
    "no_commas": Kind(
        (
            "Do not use any commas.",
            "Write without commas.",
            "Your answer must have no commas.",
        ),
        "commas",
    ),
    "bullets": Kind(
        (
            "Answer in {n} bullet points.",
            "Give {n} bullet points.",
            "Make a list of {n} bullet points.",
        ),
        "form",
    ),
    "sentences": Kind(
        (
            "Answer in {n} sentences.",
            "Write exactly {n} sentences.",
            "Your answer must have {n} sentences.",
        ),
        "form",
    ),
    "keyword": Kind(
        (
            'Use the word "{text}".',
            'Your answer must contain the word "{text}".',
            'Mention the word "{text}".',
        ),
        "word",
    ),
    "ending": Kind(
        (
            'End with the words "{text}"',
            'Your last words must be "{text}"',
            'Finish with the words "{text}"',
        ),
        "end",
    ),
    "title": Kind(
        (
            "Give your answer a title in double angular brackets.",
            "Begin with a title, such as <<title>>.",
            "Add a title in double angular brackets.",
        ),
        "start",
    ),
    "postscript": Kind(
        (
            "Add a postscript that begins with P.S.",
            "Close with a postscript, marked P.S.",
            "Put a P.S. below your answer.",
        ),
        "end",
    ),
    "quotation": Kind(
        (
            "Put your whole answer in double quotation marks.",
            "Wrap your answer in double quotation marks.",
            "Your whole answer must be within double quotation marks.",
        ),
        "quotation",
    ),
    "paragraphs": Kind(
        (
            "Write {n} paragraphs with *** between them.",
            "Your answer must have {n} paragraphs, separated by ***.",
        ),
        "form",
    ),
    "max_words": Kind(
        (
            "Use at most {number} words.",
            "Do not write more than {number} words.",
        ),
        "length",
    ),
    "avoid": Kind(
        (
            'Do not use the word "{text}".',
            'Avoid the word "{text}".',
        ),
        "word",
    ),
    "opening": Kind(
        (
            'Begin with the words "{text}".',
            'Your first words must be "{text}".',
        ),
        "start",
    ),
    "placeholders": Kind(
        (
            "Use at least {n} placeholders in square brackets, such as [name].",
            "Your answer must have at least {n} placeholders, such as [address].",
        ),
        "placeholders",
    ),
    "repeat": Kind(
        (
            "First repeat the request word for word.",
            "Before you answer, repeat the request word for word.",
        ),
        "start",
    ),
}
# These are in held-out prompts alone: no seed teaches or judges them.
TRANSFER = ("paragraphs", "max_words", "avoid", "opening", "placeholders", "repeat")
TAUGHT = tuple(kind for kind in KINDS if kind not in TRANSFER)
NUMBERS = {"two": 2, "three": 3, "four": 4}
ENDINGS = (
    "I hope this helps.",
    "That is all for now.",
    "Let me know what you think.",
    "Thank you for asking.",
    "Ask me again at any time.",
    "Have a lovely day.",
    "Tell me if you need more.",
    "Good luck with it.",
)
OPENINGS = ("To begin with", "In short", "As far as I know", "Good question", "The truth is", "Let us see")
