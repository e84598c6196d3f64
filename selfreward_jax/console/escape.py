"""Safe display of text from a model or a file."""

import os
import shlex
import unicodedata

# Unicode categories: controls, format marks, surrogates, private use, unassigned, line and paragraph separators.
_ESCAPED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def escape(text: str) -> str:
    """The text with every character escaped that a terminal or a reader would not show as it is.

    An escape sequence becomes `\\x1b[31m`, a right-to-left override `\\u202e`. Line breaks and tabs stay.
    """
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text  # the usual case, and fast
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _ESCAPED else _escape_char(c) for c in text)


def escape_line(text: str) -> str:
    """The text on one line: line breaks and tabs are escaped too, so that no text can look like a line of ours."""
    return escape(text).replace("\n", "\\n").replace("\t", "\\t")


def shell_word(text: str) -> str:
    """The text as one word of a shell command, on one line: quoted where needed, with `$'...'` for what is escaped."""
    if escape_line(text) == text:
        return shlex.quote(text)
    return "$'" + "".join(map(_in_ansi_quotes, text)) + "'"


def _in_ansi_quotes(c: str) -> str:
    if c in "'\\":
        return f"\\{c}"
    return c if c.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c))


def _escape_char(c: str) -> str:
    return c.encode("unicode_escape", "surrogatepass").decode()
