"""The tokenizer files of a Hugging Face folder -> Chat: vocabulary, chat template, and all ids that end a response."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from etils import epath

from selfreward_jax import foreign
from selfreward_jax.config.errors import brief
from selfreward_jax.console.escape import escape
from selfreward_jax.llm import worker_process
from selfreward_jax.llm.added_tokens import MAX_ID, AddedToken, named_token, read_added_tokens, read_optional_json
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.chat_check import check_chat
from selfreward_jax.llm.chat_templates import ChatError, builtin_template, read_template
from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.llm.tokenizer import Piece, SentencePiece, TokenizerError, TokenizerJson, without_normalizer
from selfreward_jax.telemetry.terminal import log_line

# The files of a folder's tokenizer. A run that starts from a folder stores a copy of them.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
)


def read_chat(folder: epath.Path, thinks: bool = False) -> Chat:
    """The chat format of a folder: its own template, or the built-in "plain" where it has none.

    Args:
      folder: the folder of a model.
      thinks: whether the model thinks before it answers, as in `Chat`.

    Raises:
      ModelFormatError: a file is missing or damaged, the tokenizer has ids that the embedding has no rows for, or a
        reply that the template teaches is not the reply that is read back.
    """
    tokenizer_config, generation_config, config, special_map = (
        read_optional_json(folder / name)
        for name in ("tokenizer_config.json", "generation_config.json", "config.json", "special_tokens_map.json")
    )
    tokenizer = _read_tokenizer(folder, tokenizer_config)
    vocab_size = config.get("vocab_size", tokenizer.vocab_size)
    if type(vocab_size) is not int:
        raise ModelFormatError(f"{folder / 'config.json'}: vocab_size is {brief(vocab_size)}; it must be an integer")
    # Added tokens that nothing uses may lie beyond the embedding. No text may give one of them.
    beyond = tokenizer.tokens_from(vocab_size)
    if not set(beyond) <= tokenizer.added:
        raise ModelFormatError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the embedding {vocab_size} rows: give a folder "
            "whose tokenizer and weights belong to one model"
        )
    token_of = {i: token for token, i in tokenizer.special_tokens.items()}
    bos_eos = {}
    for name in ("bos", "eos"):
        field = f"{name}_token"
        token = named_token(tokenizer_config if field in tokenizer_config else special_map, field)
        if token is None:
            ids = _id_list(generation_config.get(f"{name}_token_id")) or _id_list(config.get(f"{name}_token_id"))
            token = token_of.get(ids[0]) if ids else None
        if token is not None and (not isinstance(token, str) or token not in tokenizer.special_tokens):
            raise ModelFormatError(
                f"{folder}: {name}_token {brief(token)} of tokenizer_config.json is no special token of the tokenizer"
            )
        bos_eos[name] = token
    stop_ids = {*_id_list(generation_config.get("eos_token_id")), *_id_list(config.get("eos_token_id"))}
    if bos_eos["eos"]:
        stop_ids.add(tokenizer.special_tokens[bos_eos["eos"]])
    template, notice = read_template(folder, tokenizer_config)
    _say(notice)
    try:
        tokenizer.reserve(beyond)
        chat = Chat(
            tokenizer, template or builtin_template("plain"), bos_eos["bos"], bos_eos["eos"], sorted(stop_ids), thinks
        )
        check_chat(chat, vocab_size)
    except (ChatError, TokenizerError) as error:
        raise ModelFormatError(f"{folder}: {error}") from None
    if chat.spelled_marks:
        marks = ", ".join(map(brief, chat.spelled_marks))
        _say(f"{folder}: {marks} of the chat template are no tokens of the tokenizer: they are encoded as text")
    return chat


@cache
def _say(line: str) -> None:
    """Logs a line once."""
    if line:
        log_line(f"  {line}")


def _read_tokenizer(folder: epath.Path, tokenizer_config: dict[str, Any]) -> SentencePiece | TokenizerJson:
    added = read_added_tokens(folder, tokenizer_config)
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path := folder / name).exists():
            try:
                data = foreign.read_bytes(path, foreign.MAX_TOKENIZER)
                if name == "tokenizer.json":
                    worker_process.try_tokenizer("json", data)
                    return TokenizerJson(data.decode(), added)
                worker_process.try_tokenizer("sentencepiece", data)
                return _read_sentencepiece(data, added, tokenizer_config)
            except (OSError, ValueError) as error:
                reason = escape(" ".join(str(error).split()))[:500]
                raise ModelFormatError(f"{path} cannot be read ({reason}): download it again") from None
    raise ModelFormatError(
        f"{folder} has no tokenizer.json and no tokenizer.model: give a folder that holds a tokenizer"
    )


def _read_sentencepiece(data: bytes, added: Sequence[AddedToken], tokenizer_config: dict[str, Any]) -> SentencePiece:
    """A SentencePiece model, as its own library reads it. A Llama to which tokens were added was trained further with
    transformers. That changes no characters, and adds a space behind a special token only where the folder says legacy.
    """
    tokenizer, legacy = SentencePiece(data, added), tokenizer_config.get("legacy")
    if tokenizer.added and "Llama" in str(tokenizer_config.get("tokenizer_class")):
        return SentencePiece(without_normalizer(data), added, "always" if legacy is True else "first")
    return tokenizer if legacy is not False else SentencePiece(data, added, "first")


def _id_list(value: Any) -> list[int]:
    """The ids of a field that holds one id, a list of ids, or none. What is no id is left out."""
    ids = value if isinstance(value, list) else [value]
    return [i for i in ids if type(i) is int and 0 <= i < MAX_ID]


def write_tokenizer(folder: epath.Path, chat: Chat, source: epath.Path, trained_here: bool) -> None:
    """Writes the tokenizer files of a model into `folder`: copies those of `source` and generates missing ones.

    A SentencePiece model trained here also gets a tokenizer.json, which other programs read. A model that came with a
    folder may normalize text in its own way, so it is copied unchanged.

    Args:
      folder: where to write.
      chat: the model's chat format.
      source: the folder with the model's tokenizer files.
      trained_here: whether the tokenizer is a SentencePiece model that this project trained.
    """
    for name in TOKENIZER_FILES:
        if name != "config.json" and (source / name).exists():
            (folder / name).write_bytes(foreign.read_bytes(source / name, foreign.MAX_TOKENIZER))
    (folder / "chat_template.jinja").write_text(chat.exported_template())
    tokenizer_config = read_optional_json(source / "tokenizer_config.json")
    if trained_here:
        (folder / "tokenizer.json").write_text(sentencepiece_json(chat.tokenizer, chat.bos))
        tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
    elif not (folder / "tokenizer.json").exists():
        tokenizer_config.setdefault("tokenizer_class", "LlamaTokenizer")
        # Else transformers leaves out the space that SentencePiece puts in front of a text after a special token.
        tokenizer_config.setdefault("legacy", True)
    tokenizer_config |= {"bos_token": chat.bos, "eos_token": chat.eos, "clean_up_tokenization_spaces": False}
    tokenizer_config.pop("chat_template", None)  # chat_template.jinja holds it
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2, ensure_ascii=False) + "\n")
    generation_config = read_optional_json(source / "generation_config.json") | {"eos_token_id": list(chat.stop_ids)}
    if chat.bos:
        generation_config["bos_token_id"] = chat.tokenizer.special_tokens[chat.bos]
    (folder / "generation_config.json").write_text(json.dumps(generation_config, indent=2) + "\n")


def sentencepiece_json(tokenizer: SentencePiece, bos: str | None = None) -> str:
    """tokenizer.json of a SentencePiece BPE model that puts a space in front of every text and changes no character.

    `bos` is put in front of every text that is encoded with special tokens, as documents begin in training here.
    """
    pieces = tokenizer.pieces()
    ids = {p.text: i for i, p in enumerate(pieces)}
    byte_fallback = any(p.kind == "byte" for p in pieces)
    space = "\u2581"
    fuse = [{"type": "ByteFallback"}, {"type": "Fuse"}] if byte_fallback else [{"type": "Fuse"}]
    flags = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    spec = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": p.text, **flags} for i, p in enumerate(pieces) if p.kind == "control"],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": space},
                {"type": "Replace", "pattern": {"String": " "}, "content": space},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": _prepend_bos(bos, ids) if bos else None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": space}, "content": " "},
                *fuse,
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": next(p.text for p in pieces if p.kind == "unknown"),
            "fuse_unk": True,
            "byte_fallback": byte_fallback,
            "vocab": ids,
            "merges": _merges(pieces, ids),
        },
    }
    return json.dumps(spec, ensure_ascii=False)


def _merges(pieces: list[Piece], ids: dict[str, int]) -> list[list[str]]:
    """The merge list of a BPE model.

    SentencePiece merges the adjacent pair whose union has the best score. tokenizer.json lists the pairs in the order
    in which they merge. So the list holds every split of a piece into two pieces, ordered by the piece's score.
    """
    pairs = []
    for piece in pieces:
        if piece.kind == "normal" and len(piece.text) > 1:
            splits = [(piece.text[:i], piece.text[i:]) for i in range(1, len(piece.text))]
            pairs += [(-piece.score, ids[a], ids[b], a, b) for a, b in splits if a in ids and b in ids]
    return [[a, b] for *_, a, b in sorted(pairs)]


def _prepend_bos(bos: str, ids: dict[str, int]) -> dict[str, Any]:
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    text, other = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, other],
        "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
    }
