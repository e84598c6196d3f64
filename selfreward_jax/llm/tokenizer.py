"""Tokenizers behind one small protocol: SentencePiece models and Hugging Face's tokenizer.json. Also trains one.

Tokenizers differ in the space that they add in front of a text. Many add one, some only at the very beginning. None
may add one where the text continues other text. So `encode` has an argument for what precedes the text.
"""

import io
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import sentencepiece as spm
import tokenizers

from selfreward_jax.config import InputError
from selfreward_jax.console.escape import escape

# Special tokens of models trained here. SentencePiece never produces them from text, so no user or model can write one.
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

PrecededBy = Literal["nothing", "control", "text"]


class Tokenizer(Protocol):
    """The tokenizer interface that the rest of the system uses."""

    vocab_size: int
    special_tokens: Mapping[str, int]  # the special tokens and their ids

    def encode(self, text: str, preceded_by: PrecededBy = "control") -> list[int]:
        """Ids of plain text that follows nothing, a special token ("control"), or other text.

        The result never holds a special token, whatever the text contains.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        ...


class TokenizerError(InputError, ValueError):
    """A tokenizer's library cannot read its file, or fails on a text or on ids; the message gives the reason."""


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function of a tokenizer's library. Raises TokenizerError where it fails, in whatever way."""
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        # A panic of a Rust library is no Exception, and its type has no public name.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = escape(" ".join(str(error).split()))[:200]
        raise TokenizerError(f"the tokenizer fails ({reason}): give a model with another tokenizer") from None


class Piece(NamedTuple):
    """A piece of a SentencePiece vocabulary; kind: normal, control, byte or unknown."""

    text: str
    score: float
    kind: str


class SentencePiece:
    """A SentencePiece model held in memory.

    Raises:
      TokenizerError: the bytes are no such model.
    """

    _ANCHOR = "\n"  # no piece holds a line break together with other characters

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._sp = _call(spm.SentencePieceProcessor, model_proto=model)
        self.vocab_size = self._sp.vocab_size()
        ids = range(self.vocab_size)
        self.special_tokens = {_call(self._sp.id_to_piece, i): i for i in ids if self._sp.is_control(i)}
        self._anchor = _call(self._sp.encode, self._ANCHOR)

    def encode(self, text: str, preceded_by: PrecededBy = "control") -> list[int]:
        """Ids of plain text."""
        if preceded_by != "text":
            return _call(self._sp.encode, text)
        return _call(self._sp.encode, self._ANCHOR + text)[len(self._anchor) :]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        # An embedding may have more rows than the tokenizer has ids.
        known = [int(i) for i in ids if i < self.vocab_size]
        return _call(self._sp.decode, [i for i in known if not self._sp.is_control(i)])

    def pieces(self) -> list[Piece]:
        """The vocabulary, by id."""
        sp = self._sp
        predicates = {"control": sp.is_control, "byte": sp.is_byte, "unknown": sp.is_unknown}
        kinds = [next((k for k, is_kind in predicates.items() if is_kind(i)), "normal") for i in range(self.vocab_size)]
        return [Piece(sp.id_to_piece(i), sp.get_score(i), kind) for i, kind in enumerate(kinds)]


class TokenizerJson:
    """A Hugging Face tokenizer.json. Its added tokens are the special tokens: plain text never becomes one.

    Raises:
      TokenizerError: the text is not a readable tokenizer.json.
    """

    def __init__(self, text: str) -> None:
        spec = _check_spec(_call(json.loads, text))
        self._full = _call(tokenizers.Tokenizer.from_str, text)
        self._full.no_padding()
        self._full.no_truncation()
        # The library may give a token another id than its file: that of the vocabulary.
        contents = [t["content"] for t in spec.get("added_tokens") or []]
        ids = {content: self._full.token_to_id(content) for content in contents}
        self.special_tokens = {content: i for content, i in ids.items() if content and i is not None}
        # Without its added tokens, a tokenizer cannot match one in a text.
        plain = spec | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        specs = {"nothing": plain}
        specs["control"] = _without_prefix(plain, ("first",))
        specs["text"] = _without_prefix(plain, ("first", "always"))
        self._by_preceding: dict[str, tokenizers.Tokenizer] = {}
        for name, changed in specs.items():
            same = next((other for other in self._by_preceding if specs[other] == changed), None)
            self._by_preceding[name] = self._by_preceding[same] if same else _from_spec(changed)
        self.vocab_size = 1 + max(self._full.get_vocab(with_added_tokens=True).values(), default=-1)
        if not self.vocab_size:
            raise TokenizerError("it has no tokens")

    def encode(self, text: str, preceded_by: PrecededBy = "control") -> list[int]:
        """Ids of plain text."""
        return _call(self._by_preceding[preceded_by].encode, text, add_special_tokens=False).ids

    def encode_as_stored(self, text: str) -> list[int]:
        """Ids of a text as other programs make them: with the special tokens in it, and those put around it."""
        return _call(self._full.encode, text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        return _call(self._full.decode, [int(i) for i in ids], skip_special_tokens=True)


def _from_spec(spec: dict[str, Any]) -> tokenizers.Tokenizer:
    return _call(tokenizers.Tokenizer.from_str, json.dumps(spec))


def _check_spec(spec: Any) -> dict[str, Any]:
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise TokenizerError("it is not a JSON object with a model")
    return spec


def _without_prefix(spec: Any, schemes: tuple[str, ...]) -> Any:
    """The specification without the parts that put a space in front of a text.

    Args:
      spec: a tokenizer.json object, or a value within it.
      schemes: the prepend schemes to remove. "first" adds the space only at the beginning of a full text. "always"
        (and a normalizer that prepends) also adds it after special tokens.
    """
    if isinstance(spec, list):
        return [x for x in (_without_prefix(x, schemes) for x in spec) if x is not None]
    if not isinstance(spec, dict) or "vocab" in spec:
        return spec
    if spec.get("type") == "Prepend" and "always" in schemes:
        return None
    copy = {k: _without_prefix(v, schemes) for k, v in spec.items()}
    if copy.get("prepend_scheme") in schemes:
        copy["prepend_scheme"] = "never"
    if copy.get("add_prefix_space") and "always" in schemes and copy.get("type") != "Metaspace":
        copy["add_prefix_space"] = False
    return copy


def train_sentencepiece(texts: Iterable[str], vocab_size: int, byte_fallback: bool) -> bytes:
    """Trains a BPE model with SentencePiece's own trainer. The same texts give the same bytes.

    Args:
      texts: the corpus. At most 50,000 distinct lines of it are used, a uniform sample with a fixed seed.
      vocab_size: an upper bound on V; a small corpus yields fewer pieces.
      byte_fallback: encode unknown characters as bytes (256 pieces), so that any text survives a round trip.
        Without it, they become the unknown piece.
    """
    lines = sorted({line for text in texts for line in text.splitlines() if line.strip()})
    if len(lines) > 50_000:
        lines = random.Random(0).sample(lines, 50_000)
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        character_coverage=1.0 if not byte_fallback else 0.9995,
        # The default normalizer would turn line breaks into spaces and full-width letters into plain ones.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n"],
        max_sentence_length=1 << 16,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece=PAD,
        bos_piece=BOS,
        eos_piece=EOS,
        control_symbols=[USER, ASSISTANT, END],
        num_threads=1,  # more threads change the order of summation, and pieces can differ
        minloglevel=2,
    )
    return model.getvalue()
