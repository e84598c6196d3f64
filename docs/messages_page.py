"""Writes docs/messages.md, every refusal and warning of the program, from its source: python docs/messages_page.py"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("messages.md")
HEAD = """# Every message

Written by `docs/messages_page.py` from the source; do not edit it here. Search this page for a few words of what you
were told; `…` stands for what differs. A refusal ends the program with exit code 2 (75 where it says so) and loses
nothing: mend what it names and start the same command again. `troubleshooting.md` goes by symptom instead.
"""
TOLD = (
    "warn",
    "_refuse",
    "refuse",
    "say",
)  # functions that print a line; errors are what ends in Error, Stopped, Damaged


def text_of(node: ast.expr) -> str:
    """The words of a string expression, with `…` for what is put in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(p) if isinstance(p, ast.Constant) else "…" for p in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
        case ast.BinOp() | ast.IfExp():
            return "…"
        case _:
            return "…" if isinstance(node, ast.expr) else ""


def messages(source: str) -> list[str]:
    """The messages of a file in their order, those that have words of their own."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            call = node.exc
        elif isinstance(node, ast.Call) and _name(node) in TOLD and node.args:
            call = node
        else:
            continue
        ours = _name(call) in TOLD or _name(call).endswith(("Error", "Stopped", "Damaged", "Malformed"))
        words = re.sub(r"…(\s*…)+", "…", " ".join(text_of(call.args[0]).split()))
        if ours and len(words.replace("…", "").split()) >= 3:
            found.append((call.lineno, words))
    return [words for _, words in sorted(found)]


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def page() -> str:
    """The page."""
    lines = [HEAD]
    for path in sorted((ROOT / "selfreward_jax").rglob("*.py")):
        if found := messages(path.read_text()):
            lines += [f"## {path.relative_to(ROOT)}", "", *(f"- {_inert(words)}" for words in dict.fromkeys(found)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _inert(words: str) -> str:
    return re.sub(r"([\\*_`<>\[\]|#])", r"\\\1", words)


if __name__ == "__main__":
    PAGE.write_text(page())
