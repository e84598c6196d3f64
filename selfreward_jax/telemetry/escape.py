"""Text that a model or a file brought, shown without being obeyed."""

import unicodedata

_SHOWN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # controls, invisible marks, halves of characters, unassigned


def escape(text: str) -> str:
    """The text with everything that a terminal or a reader would act on, and not show, spelled out: an escape sequence
    reads `\\x1b[31m`, a right-to-left override `\\u202e`. Line breaks and tabs stay."""
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text  # as most are, and quickly
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _SHOWN else _spelled(c) for c in text)


def _spelled(c: str) -> str:
    return c.encode("unicode_escape", "surrogatepass").decode()
