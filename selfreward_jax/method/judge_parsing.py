"""Reading a judgment's end: `Score: 4`, `Choice: D` or `Better: A`.

Judges write these in many ways; tests/judge_replies.jsonl has them, with what each one says. Four rules hold for all:

- The last marker counts, since the reasons may weigh others before it. If what follows it is no plain verdict, the
  judgment is no vote; it does not fall back to an earlier one.
- A marker inside a quotation within a line is not the judge's own word, and is passed over.
- A marker behind another word ("clarity score: 1") is of something else, and the judgment is no vote.
- In doubt there is no vote: one lost costs little, a wrong one teaches.

`text` must be the judge's own words alone: what it was shown may hold anything, also "Score: 5".
"""

import re
from collections.abc import Callable

LOWEST, HIGHEST = 0.0, 5.0

# What is not seen goes; full-width characters, curly apostrophes and dashes become plain ones.
_UNSEEN = {0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFE0F, 0xFEFF}
_PLAIN = {
    **dict.fromkeys(_UNSEEN),
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys([0x2018, 0x2019], "'"),
    **dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-"),
    0x66B: ".",  # the Arabic decimal sign
}
# Every repeat below is bounded or runs to the end of a line once: a long text takes time in proportion to its length.
# `+` behind a repeat keeps it from giving back what it took, so that a look-ahead sees what really comes next.
_QUOTED = (
    r"""(?<=[\w,:] )(?<!": )(?:"[^"\n]*"(?!\s{0,4}:)|'[^'\n]*'|`[^`\n]*`)"""  # `"key":` of JSON is no quotation
    r"|(?<=[\w,: ])[“„«「][^“”„«»「」\n]*[”“»」]"
)
_GAP = r"[^\S\r\n]*+"  # white space within a line
# Emphasis, brackets, quotation marks and table bars around a verdict, in Markdown, HTML, JSON and LaTeX.
_OPEN = r"""(?:[\s*_`"'<(\[{}|$]|\\(?:boxed|text(?:bf)?|mathbf|[(\[])|</?[a-z]{1,8}>){0,16}"""
_CLOSE = r"""(?:[*_`"')\]}>$]|</[a-z]{1,8}>){0,8}+"""
_LIST = r"(?!\s{0,8}\n\s{0,8}(?:\d{1,2}[.)]|\*)\s)"  # a list of reasons in place of a verdict
# Words that may stand directly before a marker.
_OWN_WORDS = set("a adjusted final hence it my new overall revised so the therefore this thus total".split())


def _marker(word: str) -> re.Pattern[str]:
    return re.compile(
        rf"{_QUOTED}|(?<!\w)_{{0,3}}(?P<own>{word}){_CLOSE}{_GAP}(?:\((?P<scale>[^()\n]{{0,40}})\))?{_CLOSE}{_GAP}:",
        re.IGNORECASE,
    )


_SUM = r"(?:\d(?:[.,]\d)?\s?(?:\([^()\n]{0,40}\))?\s?\+[^=\n]{0,200}=\s{0,4})?"  # 1 + 1 + 1 =
_UNIT = rf"(?:分|点|점|{_GAP}(?:points?|pts?|stars?|Punkte)\b)?+"
_OF = r"(?:/|(?:out of|of|sur|von|de|di|su|van|av|из)\b)"
_FIVE = r"(?:a possible |the )?(?:5(?:[.,]0{1,3})?+|five)(?!\d)"
_NUMBER = re.compile(
    rf"{_LIST}{_OPEN}{_SUM}(?P<verdict>\d{{1,9}}+(?:\.\d{{1,9}}+|,\d{{1,2}}+)?+){_CLOSE}{_UNIT}"
    rf"(?:{_GAP}\(?{_OF}{_GAP}{_FIVE})?+"
    rf"(?![\w%]|[.,/:-]\d|{_GAP}(?:[%+]|,?{_GAP}\d|[-~→]{{1,2}}>?{_OPEN}\d)"  # another number, or a range
    rf"|{_GAP}\(?{_OF}|{_GAP}\([^()\n]{{0,40}}\){_GAP}\+"  # another scale, or the first part of a sum
    rf"|{_GAP}(?:percent|or|and a|for|to{_GAP}{_OPEN}\d)\b)",
    re.IGNORECASE,
)
_NO_ARTICLE = r"(?![^\S\r\n]++(?!(?:as|because|by|is|over|since|than)\b)[^\W\d_])"  # not "A good answer"


def _alone(others: str) -> str:
    """Not the beginning of a word, a grade like B+, or one of several."""
    return rf"(?![\w'+-]|{_GAP}(?:[-/&|,+=<→]|\b(?:or|and|to)\b){_GAP}{_OPEN}(?:{others})\b)"


_LETTER = re.compile(
    rf"{_OPEN}(?:(?:option|bucket)\s)?{_OPEN}(?P<verdict>[a-e]){_NO_ARTICLE}{_CLOSE}{_alone('[a-e]')}",
    re.IGNORECASE,
)
_SIDE = re.compile(
    rf"{_OPEN}(?:it's )?(?:a )?(?:(?:the )?(?:answer|response) )?{_OPEN}"
    rf"(?P<verdict>[ab]{_NO_ARTICLE}|tie|tied|draw|neither|both|equal(?:ly good)?){_CLOSE}{_alone('[ab]|tie')}",
    re.IGNORECASE,
)

# Of each form: the marker, what brackets before its colon may hold ("out of 5"), and the verdict.
_FORMS = {
    "points": (_marker("score"), r"\D*(?:0\D+)?5\D*", _NUMBER),
    "choice": (_marker("choice"), r".*", _LETTER),
    "pairwise": (_marker("better"), r".*", _SIDE),
}


def _verdict(text: str, form: str) -> re.Match[str] | None:
    """The group `verdict` behind the last marker of the plain text."""
    marker, scale, value = _FORMS[form]
    text, last = text.translate(_PLAIN), None
    for match in marker.finditer(text):
        last = match if match["own"] else last
    if last is None or (last["scale"] and not re.fullmatch(scale, last["scale"])):
        return None
    before = re.search(r"(\w+)[ \t-]\Z", text[max(0, last.start() - 20) : last.start()])
    return value.match(text, last.end()) if not before or before[1].lower() in _OWN_WORDS else None


def parse_score(text: str) -> float | None:
    """The score from 0 to 5 that a judgment gives (`Score: 4`, also 4.5, 4,5 or 4/5); None if it gives none."""
    found = _verdict(text, "points")
    score = float(found["verdict"].replace(",", ".")) if found else None
    return score if score is not None and LOWEST <= score <= HIGHEST else None


def parse_choice(text: str) -> float | None:
    """The place of the letter that a judgment gives (`Choice: D`), from A = 1 to E = 5; None if it gives none."""
    found = _verdict(text, "choice")
    return 1.0 + "abcde".index(found["verdict"].lower()) if found else None


def parse_preference(text: str) -> str | None:
    """The answer that a judgment prefers (`Better: A`), "a", "b" or "tie"; None if it does not say."""
    found = _verdict(text, "pairwise")
    side = found["verdict"].lower() if found else None
    return side if side in (None, "a", "b") else "tie"


PARSERS: dict[str, Callable[[str], float | None]] = {"points": parse_score, "choice": parse_choice}


def score_span(text: str, form: str) -> int | None:
    """Where in `text` the number or letter stands that `PARSERS[form]` reads; None if it reads none."""
    found = _verdict(text, form)
    if found is None or PARSERS[form](text) is None:
        return None
    seen = [i for i, char in enumerate(text) if ord(char) not in _UNSEEN]
    return seen[found.start("verdict")]
