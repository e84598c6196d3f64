"""Tokens that a Hugging Face folder adds to its tokenizer, in files next to it.

A special token is never made from text. A token that is not special is a word: it is matched wherever it occurs.
The tags of a thinking block are words, since models write them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

from etils import epath

from selfreward_jax.config.errors import brief
from selfreward_jax.llm.hf_config import ModelFormatError, read_json_object
from selfreward_jax.llm.thinking import TAGS

MAX_ID = 1 << 31  # ids are int32
_NAMED = ("bos_token", "eos_token")
_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


class AddedToken(NamedTuple):
    """A token and how it is matched. Its id is None where the tokenizer must know it already."""

    content: str
    id: int | None
    special: bool
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def read_optional_json(path: epath.Path) -> dict[str, Any]:
    """The object of a JSON file; an empty one if the file does not exist."""
    return read_json_object(path) if path.exists() else {}


def named_token(config: dict[str, Any], name: str) -> Any:
    """A field such as "eos_token": its text, also where it is an object with flags."""
    token = config.get(name)
    return token.get("content") if isinstance(token, dict) else token


def read_added_tokens(folder: epath.Path, tokenizer_config: dict[str, Any]) -> list[AddedToken]:
    """The tokens of added_tokens_decoder in tokenizer_config.json, of added_tokens.json, and the named special ones
    (bos, eos and additional ones, also of special_tokens_map.json). The first mention of a token decides.

    Raises:
      ModelFormatError: one of them is malformed.
    """
    special = _special_names(tokenizer_config) | _special_names(read_optional_json(folder / "special_tokens_map.json"))
    decoder = tokenizer_config.get("added_tokens_decoder") or {}
    path = folder / "tokenizer_config.json"
    if not isinstance(decoder, dict):
        raise ModelFormatError(f"{path}: added_tokens_decoder is {brief(decoder)}; it must be an object")
    tokens: dict[str, AddedToken] = {}
    for key, fields in decoder.items():
        number = int(key) if key.isascii() and key.isdigit() and len(key) < 12 else None
        content = fields.get("content") if isinstance(fields, dict) else None
        tokens.setdefault(*_token(path, content, number, special, fields if isinstance(fields, dict) else {}))
    path = folder / "added_tokens.json"
    for content, number in read_optional_json(path).items():
        tokens.setdefault(*_token(path, content, number, special, {}))
    for content in special - tokens.keys():
        tokens[content] = AddedToken(content, None, True)
    return sorted(tokens.values(), key=lambda t: (t.id is None, t.id, t.content))


def _token(
    path: epath.Path, content: Any, number: Any, special: set[str], fields: dict[str, Any]
) -> tuple[str, AddedToken]:
    if not _is_text(content) or type(number) is not int or not 0 <= number < MAX_ID:
        raise ModelFormatError(
            f"{path}: the added token {brief(content)} has the id {brief(number)}; it must be a text with an id: "
            "download the file again"
        )
    flags = {name: bool(fields.get(name, False)) for name in _FLAGS}
    flags["special"] = (flags["special"] or content in special) and content not in TAGS
    return content, AddedToken(content, number, **flags)


def _special_names(config: dict[str, Any]) -> set[str]:
    """The special tokens that a file names. What is no text is left out: it is refused where it is used."""
    additional = config.get("additional_special_tokens")
    values = [named_token(config, name) for name in _NAMED]
    for token in additional if isinstance(additional, Sequence) and not isinstance(additional, str) else ():
        values.append(token.get("content") if isinstance(token, dict) else token)
    return {value for value in values if _is_text(value)}


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a text that a tokenizer can hold: half of a surrogate pair is none."""
    return isinstance(value, str) and bool(value) and not any("\ud800" <= char <= "\udfff" for char in value)
