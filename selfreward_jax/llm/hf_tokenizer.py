"""The tokenizer files of a Hugging Face folder -> Chat: pieces, chat template, and every id that ends a response."""

import json
from typing import Any

from etils import epath

from selfreward_jax.llm.chat import Chat, ChatError, builtin_template
from selfreward_jax.llm.hf_config import ModelFormatError, read_json_object
from selfreward_jax.llm.tokenizer import SentencePiece, Tokenizer, TokenizerJson

# What a folder's tokenizer is made of; a run that starts from a folder keeps a copy of these.
TOKENIZER_FILES = (
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
        raise ModelFormatError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the embedding {rows} rows: they are not of "
            "one model"
        )
    piece_of = {i: piece for piece, i in tokenizer.special_tokens.items()}
    named = {}
    for name in ("bos", "eos"):
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            ids = _ids(generation.get(f"{name}_token_id")) or _ids(config.get(f"{name}_token_id"))
            token = piece_of.get(ids[0]) if ids else None
        if token is not None and (not isinstance(token, str) or token not in tokenizer.special_tokens):
            raise ModelFormatError(f"{folder}: {name}_token {token!r} is no control piece of the tokenizer")
        named[name] = token
    stops = {*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))}
    if named["eos"]:
        stops.add(tokenizer.special_tokens[named["eos"]])
    template = _template(folder, settings) or builtin_template("plain")
    try:
        return Chat(tokenizer, template, named["bos"], named["eos"], sorted(stops))
    except ChatError as error:
        raise ModelFormatError(f"{folder}: {error}") from None


def _tokenizer(folder: epath.Path) -> Tokenizer:
    for name, kind in (("tokenizer.json", "text"), ("tokenizer.model", "bytes")):
        if (path := folder / name).exists():
            try:
                return TokenizerJson(path.read_text()) if kind == "text" else SentencePiece(path.read_bytes())
            except (OSError, ValueError, RuntimeError) as error:
                raise ModelFormatError(
                    f"{path} cannot be read ({' '.join(str(error).split())}): download it again"
                ) from None
    raise ModelFormatError(
        f"{folder} has no tokenizer.json and no tokenizer.model: give a folder that holds its tokenizer"
    )


def _json(path: epath.Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _ids(value: Any) -> list[int]:
    """Ids of a field that holds one, several or none."""
    return [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]


def _template(folder: epath.Path, settings: dict[str, Any]) -> str | None:
    if (path := folder / "chat_template.jinja").exists():
        try:
            return path.read_text()
        except (OSError, ValueError) as error:
            raise ModelFormatError(f"{path} cannot be read ({error})") from None
    given = settings.get("chat_template")
    if isinstance(given, list):  # several, by name
        given = {t.get("name"): t.get("template") for t in given if isinstance(t, dict)}.get("default")
    return given


def write_tokenizer(folder: epath.Path, chat: Chat, source: epath.Path, own: bool) -> None:
    """Writes the tokenizer files of a model into `folder`: those of `source`, what is missing made.

    A SentencePiece model of our own gets a tokenizer.json beside it, which is what other programs read. One that came
    with a folder may change texts in ways of its own: other programs get it as it is.
    """
    for name in TOKENIZER_FILES:
        if name != "config.json" and (source / name).exists():
            (folder / name).write_bytes((source / name).read_bytes())
    (folder / "chat_template.jinja").write_text(chat.template)
    settings = _json(source / "tokenizer_config.json")
    if own:
        (folder / "tokenizer.json").write_text(sentencepiece_json(chat.tokenizer, chat.bos))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    elif not (folder / "tokenizer.json").exists():
        settings.setdefault("tokenizer_class", "LlamaTokenizer")
    settings |= {"bos_token": chat.bos, "eos_token": chat.eos, "clean_up_tokenization_spaces": False}
    settings.pop("chat_template", None)  # the file of its own counts
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    generation = _json(source / "generation_config.json") | {"eos_token_id": list(chat.stop_ids)}
    if chat.bos:
        generation["bos_token_id"] = chat.tokenizer.special_tokens[chat.bos]
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def sentencepiece_json(tokenizer: SentencePiece, bos: str | None = None) -> str:
    """tokenizer.json of a SentencePiece BPE model that puts a space in front of every text and changes no character.

    SentencePiece merges the pair of neighbours whose union has the best score; tokenizer.json lists pairs in the order
    in which they merge. So: all ways to cut a piece in two pieces, in the order of the piece's score. `bos` is put in
    front of every text that is encoded with special tokens, as our documents begin.
    """
    pieces = tokenizer.pieces()
    ids = {p.text: i for i, p in enumerate(pieces)}
    pairs = []
    for piece in pieces:
        if piece.kind == "normal" and len(piece.text) > 1:
            cuts = [(piece.text[:i], piece.text[i:]) for i in range(1, len(piece.text))]
            pairs += [(-piece.score, ids[a], ids[b], a, b) for a, b in cuts if a in ids and b in ids]
    by_bytes = any(p.kind == "byte" for p in pieces)
    space = "\u2581"
    fuse = [{"type": "ByteFallback"}, {"type": "Fuse"}] if by_bytes else [{"type": "Fuse"}]
    spec = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": i,
                "content": p.text,
                "special": True,
                "normalized": False,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
            }
            for i, p in enumerate(pieces)
            if p.kind == "control"
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": space},
                {"type": "Replace", "pattern": {"String": " "}, "content": space},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": _begins_with(bos, ids) if bos else None,
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
            "byte_fallback": by_bytes,
            "vocab": ids,
            "merges": [[a, b] for *_, a, b in sorted(pairs)],
        },
    }
    return json.dumps(spec, ensure_ascii=False)


def _begins_with(bos: str, ids: dict[str, int]) -> dict[str, Any]:
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    text, other = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, other],
        "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
    }
