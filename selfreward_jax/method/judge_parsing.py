"""Parses the end of a judgment: `Score: 4`, `Choice: D` or `Better: A`.

Judges write these in many ways; tests/judge_replies.jsonl lists them, each with its correct verdict. Four rules hold
for all formats:

- The last marker counts, because the reasons before it may weigh other ones. If no plain verdict follows it, the
  judgment is not a vote; there is no fallback to an earlier marker.
- A marker in a quotation within a line is not the judge's own statement, and is ignored.
- A marker after another word ("clarity score: 1") rates something else, and the judgment is not a vote.
- In doubt there is no vote: a lost vote costs little, a wrong one is learned.

`text` must be the judge's own output only: its prompt may contain anything, also "Score: 5".
"""

import re
from collections.abc import Callable

MIN_SCORE, MAX_SCORE = 0.0, 5.0

# Invisible characters are removed; full-width characters, curly apostrophes and dashes become plain ones.
_INVISIBLE = {0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFE0F, 0xFEFF}
_TO_PLAIN = {
    **dict.fromkeys(_INVISIBLE),
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys([0x2018, 0x2019], "'"),
    **dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-"),
    0x66B: ".",  # the Arabic decimal separator
}
# Every repeat below is bounded or runs to the end of a line once, so that time is linear in the length of the text.
# `+` after a repeat makes it possessive (no backtracking), so that a look-ahead sees what really comes next.
_QUOTED = (
    r"""(?<=[\w,:] )(?<!": )(?:"[^"\n]*"(?!\s{0,4}:)|'[^'\n]*'|`[^`\n]*`)"""  # `"key":` of JSON is not a quotation
    r"|(?<=[\w,: ])[“„«「][^“”„«»「」\n]*[”“»」]"
)
_SPACE = r"[^\S\r\n]*+"  # white space within a line
# Emphasis, brackets, quotation marks and table bars around a verdict, in Markdown, HTML, JSON and LaTeX.
_OPEN = r"""(?:[\s*_`"'<(\[{}|$]|\\(?:boxed|text(?:bf)?|mathbf|[(\[])|</?[a-z]{1,8}>){0,16}"""
_CLOSE = r"""(?:[*_`"')\]}>$]|</[a-z]{1,8}>){0,8}+"""
_NOT_A_LIST = r"(?!\s{0,8}\n\s{0,8}(?:\d{1,2}[.)]|\*)\s)"  # not a list of reasons in place of a verdict
# Words that are allowed directly before a marker.
_WORDS_BEFORE_MARKER = set("a adjusted final hence it my new overall revised so the therefore this thus total".split())


def _marker(word: str) -> re.Pattern[str]:
    """Matches quotations, and markers as the group `marker`; the group `scale` is the text in brackets before `:`."""
    return re.compile(
        rf"{_QUOTED}|(?<!\w)_{{0,3}}(?P<marker>{word}){_CLOSE}{_SPACE}"
        rf"(?:\((?P<scale>[^()\n]{{0,40}})\))?{_CLOSE}{_SPACE}:",
        re.IGNORECASE,
    )


_SUM = r"(?:\d(?:[.,]\d)?\s?(?:\([^()\n]{0,40}\))?\s?\+[^=\n]{0,200}=\s{0,4})?"  # 1 + 1 + 1 =
_UNIT = rf"(?:分|点|점|{_SPACE}(?:points?|pts?|stars?|Punkte)\b)?+"
_OUT_OF = r"(?:/|(?:out of|of|sur|von|de|di|su|van|av|из)\b)"
_FIVE = r"(?:a possible |the )?(?:5(?:[.,]0{1,3})?+|five)(?!\d)"
_NUMBER = re.compile(
    rf"{_NOT_A_LIST}{_OPEN}{_SUM}(?P<verdict>\d{{1,9}}+(?:\.\d{{1,9}}+|,\d{{1,2}}+)?+){_CLOSE}{_UNIT}"
    rf"(?:{_SPACE}\(?{_OUT_OF}{_SPACE}{_FIVE})?+"
    rf"(?![\w%]|[.,/:-]\d|{_SPACE}(?:[%+]|,?{_SPACE}\d|[-~→]{{1,2}}>?{_OPEN}\d)"  # another number, or a range
    rf"|{_SPACE}\(?{_OUT_OF}|{_SPACE}\([^()\n]{{0,40}}\){_SPACE}\+"  # another scale, or the first part of a sum
    rf"|{_SPACE}(?:percent|or|and a|for|to{_SPACE}{_OPEN}\d)\b)",
    re.IGNORECASE,
)
_NOT_AN_ARTICLE = r"(?![^\S\r\n]++(?!(?:as|because|by|is|over|since|than)\b)[^\W\d_])"  # not "A good answer"


def _single(alternatives: str) -> str:
    """Not followed by the rest of a word, by a sign as in the grade B+, or by a second verdict."""
    return rf"(?![\w'+-]|{_SPACE}(?:[-/&|,+=<→]|\b(?:or|and|to)\b){_SPACE}{_OPEN}(?:{alternatives})\b)"


_LETTER = re.compile(
    rf"{_OPEN}(?:(?:option|bucket)\s)?{_OPEN}(?P<verdict>[a-e]){_NOT_AN_ARTICLE}{_CLOSE}{_single('[a-e]')}",
    re.IGNORECASE,
)
_PREFERENCE = re.compile(
    rf"{_OPEN}(?:it's )?(?:a )?(?:(?:the )?(?:answer|response) )?{_OPEN}"
    rf"(?P<verdict>[ab]{_NOT_AN_ARTICLE}|tie|tied|draw|neither|both|equal(?:ly good)?){_CLOSE}{_single('[ab]|tie')}",
    re.IGNORECASE,
)

# For each output format: the marker, what brackets before its colon may hold ("out of 5"), and the verdict.
_FORMATS = {
    "points": (_marker("score"), r"\D*(?:0\D+)?5\D*", _NUMBER),
    "choice": (_marker("choice"), r".*", _LETTER),
    "pairwise": (_marker("better"), r".*", _PREFERENCE),
}


def _match_verdict(text: str, output_format: str) -> re.Match[str] | None:
    """A match in the plain text whose group `verdict` follows the last marker."""
    marker, scale, verdict = _FORMATS[output_format]
    text, last = text.translate(_TO_PLAIN), None
    for match in marker.finditer(text):
        last = match if match["marker"] else last
    if last is None or (last["scale"] and not re.fullmatch(scale, last["scale"])):
        return None
    word_before = re.search(r"(\w+)[ \t-]\Z", text[max(0, last.start() - 20) : last.start()])
    if word_before and word_before[1].lower() not in _WORDS_BEFORE_MARKER:
        return None
    return verdict.match(text, last.end())


def parse_score(text: str) -> float | None:
    """The score from 0 to 5 that a judgment gives (`Score: 4`, also 4.5, 4,5 or 4/5); None if it gives none."""
    match = _match_verdict(text, "points")
    score = float(match["verdict"].replace(",", ".")) if match else None
    return score if score is not None and MIN_SCORE <= score <= MAX_SCORE else None


def parse_choice(text: str) -> float | None:
    """The value of the letter that a judgment gives (`Choice: D`), from A = 1 to E = 5; None if it gives none."""
    match = _match_verdict(text, "choice")
    return 1.0 + "abcde".index(match["verdict"].lower()) if match else None


def parse_preference(text: str) -> str | None:
    """The response that a judgment prefers (`Better: A`): "a", "b" or "tie"; None if it gives no preference."""
    match = _match_verdict(text, "pairwise")
    preference = match["verdict"].lower() if match else None
    return preference if preference in (None, "a", "b") else "tie"


PARSERS: dict[str, Callable[[str], float | None]] = {"points": parse_score, "choice": parse_choice}


def score_start(text: str, output_format: str) -> int | None:
    """The index in `text` of the number or letter that `PARSERS[output_format]` parses; None if it parses none."""
    match = _match_verdict(text, output_format)
    if match is None or PARSERS[output_format](text) is None:
        return None
    visible = [i for i, char in enumerate(text) if ord(char) not in _INVISIBLE]
    return visible[match.start("verdict")]
