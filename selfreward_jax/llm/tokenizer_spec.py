"""Changes to the specification of a tokenizer.json, so that plain text is encoded as a chat needs it."""

from collections.abc import Mapping
from typing import Any


def without_special(spec: dict[str, Any], special: Mapping[str, int]) -> dict[str, Any]:
    """The specification of a tokenizer whose model cannot make a special token of its vocabulary from text.

    The ids of added tokens stay. The unknown token is needed, and stays too.
    """
    model = spec["model"]
    vocab, unknown = model.get("vocab"), model.get("unk_token")
    if isinstance(vocab, list) and isinstance(model.get("unk_id"), int) and 0 <= model["unk_id"] < len(vocab):
        unknown = vocab[model["unk_id"]][0]
    pieces = vocab if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab or ())}
    inside = {name for name in special if name in pieces and name != unknown}
    if not inside:
        return spec
    if model.get("merges"):  # BPE makes what its merges make
        pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        merges = [list(pair) for pair in pairs if "".join(pair) not in inside and not inside & {*pair}]
        model = model | {"merges": merges}
        if not model.get("ignore_merges"):
            return spec | {"model": model}
    hidden = {name: f"\U0010fffe{i}" for i, name in enumerate(sorted(inside))}  # no text
    if isinstance(vocab, dict):
        vocab = {hidden.get(name, name): i for name, i in vocab.items()}
    else:
        vocab = [[hidden.get(name, name), score] for name, score in vocab]
    added = [t for t in spec.get("added_tokens") or [] if t["content"] not in inside]
    return spec | {"model": model | {"vocab": vocab}, "added_tokens": added}


def without_prefix(spec: Any, schemes: tuple[str, ...]) -> Any:
    """The specification without the parts that put a space in front of a text.

    Args:
      spec: a tokenizer.json object, or a value within it.
      schemes: the prepend schemes to remove. "first" adds the space only at the beginning of a full text. "always"
        (and a normalizer that prepends) also adds it after special tokens.
    """
    if isinstance(spec, list):
        return [x for x in (without_prefix(x, schemes) for x in spec) if x is not None]
    if not isinstance(spec, dict) or "vocab" in spec:
        return spec
    if spec.get("type") == "Prepend" and "always" in schemes:
        return None
    copy = {k: without_prefix(v, schemes) for k, v in spec.items()}
    if copy.get("prepend_scheme") in schemes:
        copy["prepend_scheme"] = "never"
    if copy.get("add_prefix_space") and "always" in schemes and copy.get("type") != "Metaspace":
        copy["add_prefix_space"] = False
    return copy
