"""The thinking block of a reply: reasoning between two tags, in front of the answer.

Templates treat it in three ways. Some put an empty block around the answer of the last turn. Some end the generation
prompt with a block that is open, or empty and closed. Most have none. `find_layout` reduces all of them to one
description of what a response consists of.
"""

import re
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"
TAGS = (OPEN, CLOSE)
_DEFAULT_CLOSE = f"\n{CLOSE}\n\n"  # where a template only opens the block
_BLOCK = re.compile(rf"{OPEN}(\s*){CLOSE}\s*")
_BLOCK_AT_END = re.compile(rf"{OPEN}\s*(?:{CLOSE}\s*)?\Z")


class Reply(NamedTuple):
    """A reply: its reasoning, "" if it has none, and its answer."""

    thinking: str
    answer: str


class Layout(NamedTuple):
    """What stands around the texts of a response.

    prompt_end: what follows the rendered prompt and still belongs to the prompt.
    before: text before the reasoning.
    close: text between the reasoning and the answer; "" if a response has no place for reasoning.
    lead: text before the answer, after the reasoning.
    opened: whether the prompt ends inside a block, so that a response begins with reasoning.
    """

    prompt_end: str = ""
    before: str = ""
    close: str = ""
    lead: str = ""
    opened: bool = False


def has_block(template: str) -> bool:
    """Whether a template knows thinking blocks."""
    return CLOSE in template


def split_reply(text: str, opened: bool = False) -> Reply:
    """The reasoning and the answer of a text. A text without a block is all answer, and is returned unchanged.

    Args:
      text: a reply.
      opened: the block was opened before the text.
    """
    start = text.lstrip()
    if not opened and not start.startswith(OPEN):
        return Reply("", text)
    thinking, _, answer = start.removeprefix(OPEN).partition(CLOSE)
    while (answer := answer.strip()).startswith(OPEN):  # one block after the other
        answer = answer.partition(CLOSE)[2]
    return Reply(thinking.strip(), answer)


def find_layout(prompt: str, without_generation: str, until_answer: str, thinks: bool) -> Layout | None:
    """The layout of a response; None where the template begins it in two different ways.

    Args:
      prompt: a rendered conversation of one user message, with add_generation_prompt.
      without_generation: the same without it.
      until_answer: the same conversation with an answer, rendered up to that answer.
      thinks: whether the model shall think. If not, its prompts close the block.
    """
    block = _BLOCK_AT_END.search(prompt)
    if until_answer.startswith(prompt):
        lead = until_answer[len(prompt) :]
    elif block and until_answer.startswith(prompt[: block.start()]):
        lead = until_answer[block.start() :]
    else:
        return None
    if block and CLOSE not in block[0]:
        close, lead = (lead.removeprefix(block[0]), "") if CLOSE in lead else (_DEFAULT_CLOSE, lead)
        return Layout(close=close, lead=lead, opened=True) if thinks else Layout(prompt_end=close, lead=lead)
    prompt_end = ""
    if prompt == without_generation and lead.strip():  # the template has no generation prompt: this is one
        # A space in front of the answer stays with it: one token may hold both.
        match = _BLOCK.search(lead)
        end = match.start() if match else len(lead.rstrip(" "))
        prompt_end, lead = lead[:end], lead[end:]
    if not (match := _BLOCK.search(lead)):
        return Layout(prompt_end, lead=lead)
    if not thinks:
        return Layout(prompt_end + lead[: match.end()], lead=lead[match.end() :])
    half = match.start(1) + len(match[1]) // 2
    return Layout(prompt_end, lead[:half], lead[half : match.end()], lead[match.end() :])
