"""The tokenizer files of a Hugging Face folder -> Chat: pieces, chat template, and every id that ends a response."""

import json
from typing import Any

from etils import epath

from selfreward_jax.llm.chat import Chat, ChatError, our_template
from selfreward_jax.llm.hf_config import HubError
from selfreward_jax.llm.tokenizer import SentencePiece, Tokenizer, TokenizerJson

# What a folder's tokenizer is made of; a run that starts from a folder keeps a copy of these.
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)


def read_chat(folder: epath.Path) -> Chat:
    """The chat format of a folder: its own template, or ours where it has none.

    Raises:
      HubError: a file is missing or damaged, or the tokenizer knows more ids than the model has rows.
    """
    tokenizer = _tokenizer(folder)
    settings, generation, config = (
        _json(folder / name) for name in ("tokenizer_config.json", "generation_config.json", "config.json")
    )
    rows = config.get("vocab_size", tokenizer.vocab_size)
    if tokenizer.vocab_size > rows:
        raise HubError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the embedding {rows} rows: they are not of "
            "one model"
        )
    piece_of = {i: piece for piece, i in tokenizer.controls.items()}
    named = {}
    for name in ("bos", "eos"):
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            ids = _ids(generation.get(f"{name}_token_id")) or _ids(config.get(f"{name}_token_id"))
            token = piece_of.get(ids[0]) if ids else None
        if token is not None and token not in tokenizer.controls:
            raise HubError(f"{folder}: {name}_token {token!r} is no control piece of the tokenizer")
        named[name] = token
    stops = {*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))}
    if named["eos"]:
        stops.add(tokenizer.controls[named["eos"]])
    template = _template(folder, settings) or our_template("plain")
    try:
        return Chat(tokenizer, template, named["bos"], named["eos"], sorted(stops))
    except ChatError as error:
        raise HubError(f"{folder}: {error}") from None


def _tokenizer(folder: epath.Path) -> Tokenizer:
    for name, kind in (("tokenizer.json", "text"), ("tokenizer.model", "bytes")):
        if (path := folder / name).exists():
            try:
                return TokenizerJson(path.read_text()) if kind == "text" else SentencePiece(path.read_bytes())
            except (OSError, ValueError, RuntimeError) as error:
                raise HubError(f"{path} cannot be read ({' '.join(str(error).split())}): download it again") from None
    raise HubError(f"{folder} has no tokenizer.json and no tokenizer.model: give a folder that holds its tokenizer")


def _json(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise HubError(f"{path} cannot be read ({error}): it must be JSON") from None
    if not isinstance(found, dict):
        raise HubError(f"{path} is not a JSON object")
    return found


def _ids(value: Any) -> list[int]:
    """Ids of a field that holds one, several or none."""
    return [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]


def _template(folder: epath.Path, settings: dict[str, Any]) -> str | None:
    if (path := folder / "chat_template.jinja").exists():
        return path.read_text()
    given = settings.get("chat_template")
    if isinstance(given, list):  # several, by name
        given = {t.get("name"): t.get("template") for t in given if isinstance(t, dict)}.get("default")
    return given
