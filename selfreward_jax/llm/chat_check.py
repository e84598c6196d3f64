"""Checks of a chat format before it is used: replies survive training and reading, and every id has a row."""

from selfreward_jax.config.errors import brief
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.chat_templates import ChatError
from selfreward_jax.llm.thinking import CLOSE, OPEN, Reply

_PROMPT = "What is two and two?"
_ANSWER = "Two and two is four."
_THINKING = "Count them."


def check_chat(chat: Chat, vocab_size: int) -> None:
    """Checks what is taught and read: a plain reply, one with a thinking block, and a second turn.

    Args:
      chat: the chat format.
      vocab_size: the number of rows of the embedding.

    Raises:
      ChatError: a reply is not read back as it was taught, or an id has no row.
    """
    rendered = chat.render([("user", _PROMPT), ("assistant", _ANSWER)], False)
    if _PROMPT not in rendered or _ANSWER not in rendered:
        raise ChatError("the chat template changes the texts of messages: give a template that leaves them as they are")
    reasoned = f"{OPEN}\n{_THINKING}\n{CLOSE}\n\n{_ANSWER}"
    for reply in (_ANSWER, reasoned):
        ids = _targets(chat, reply)
        _check_ids(chat, ids, vocab_size)
        expected = Reply(_THINKING, _ANSWER) if chat.thinks and reply == reasoned else Reply("", _ANSWER)
        if not chat.has_thinking:
            expected = Reply("", reply)
        read = chat.split_response(ids)
        again = chat.split_response(_targets(chat, read.answer))
        # A tokenizer may change a text: its case, or characters that it has no token for. That is not the template.
        keeps = all(chat.tokenizer.decode(chat.tokenizer.encode(text)).strip() == text for text in expected)
        if keeps and (read != expected or again.answer != read.answer):
            raise ChatError(
                f"the chat template does not give back what it was given: the reply {brief(reply)} is read as "
                f"{brief(read.answer)}, and that as {brief(again.answer)}; give a template that leaves replies as they "
                "are"
            )
    _check_turns(chat, reasoned, vocab_size)


def _check_turns(chat: Chat, reply: str, vocab_size: int) -> None:
    """Two turns: what went before is the answer alone. A template that has one turn only is no fault."""
    try:
        ids, of_answer = (
            chat.message_ids([("user", _PROMPT), ("assistant", text), ("user", _PROMPT)]) for text in (reply, _ANSWER)
        )
    except ChatError:
        return
    _check_ids(chat, ids, vocab_size)
    if chat.has_thinking and ids != of_answer:
        raise ChatError("the chat template keeps the reasoning of earlier turns: give one that leaves it out")


def _check_ids(chat: Chat, ids: list[int], vocab_size: int) -> None:
    if (highest := max([*ids, *chat.prompt_ids(_PROMPT)])) >= vocab_size:
        raise ChatError(
            f"the chat template uses the token {highest}, but the embedding has {vocab_size} rows: give a folder "
            "whose tokenizer and weights belong to one model"
        )


def _targets(chat: Chat, reply: str) -> list[int]:
    example = chat.example(_PROMPT, reply)
    return [i for i, is_target in zip(example.ids, example.target, strict=True) if is_target]
