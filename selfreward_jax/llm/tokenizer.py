"""Tokenizers behind one small protocol: SentencePiece models and Hugging Face's tokenizer.json. Also trains one.

Tokenizers differ in the space that they add in front of a text. Many add one, some only at the very beginning. None
may add one where the text continues other text. So `encode` has an argument for what precedes the text.
"""

import io
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import sentencepiece as spm
import tokenizers

from selfreward_jax.config import InputError
from selfreward_jax.console.escape import escape
from selfreward_jax.llm.added_tokens import AddedToken
from selfreward_jax.llm.thinking import TAGS
from selfreward_jax.llm.tokenizer_spec import without_prefix, without_special

# Special tokens of models trained here. SentencePiece never produces them from text, so no user or model can write one.
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

PrecededBy = Literal["nothing", "control", "text"]
DummyPrefix = Literal["own", "always", "first"]
_SPACE = "\u2581"  # a space inside a piece of SentencePiece


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

    def reserve(self, names: Iterable[str]) -> None:
        """Makes those of the names special that a text would otherwise give a single id of the folder's own."""
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
    """A SentencePiece model held in memory, and the tokens that its folder adds.

    Args:
      model: the bytes of the model.
      added: tokens of the folder's other files.
      dummy_prefix: where the model's dummy prefix, a space, is put in front of a text. "own": everywhere but behind
        other text, as the library does. "always", "first": as transformers does, not in front of a space; with "first"
        not behind a special token either.

    Raises:
      TokenizerError: the bytes are no such model.
    """

    def __init__(self, model: bytes, added: Sequence[AddedToken] = (), dummy_prefix: DummyPrefix = "own") -> None:
        self.model, self.dummy_prefix = model, dummy_prefix
        self._sp = _call(spm.SentencePieceProcessor, model_proto=model)
        size = self._sp.vocab_size()
        self._texts = _call(self._sp.id_to_piece, list(range(size)))
        self.special_tokens = {self._texts[i]: i for i in range(size) if self._sp.is_control(i)}
        # The library never makes a piece with a space in it: it writes spaces in another way.
        self._words = {t: AddedToken(t, i, False) for i, t in enumerate(self._texts) if " " in t}
        self._unsafe: set[str] = set()  # special tokens that the library would make from text
        for token in added:
            self._add(token)
        self.vocab_size = max([size, *(1 + t.id for t in added if t.id is not None)])
        self.added = {t.content for t in added if t.id is not None and t.id >= size}
        self._anchor = self._find_anchor()
        self._anchor_ids = _call(self._sp.encode, self._anchor)
        self._pattern = self._find_pattern()

    def _add(self, token: AddedToken) -> None:
        size = len(self._texts)
        number = self._sp.piece_to_id(token.content) if token.id is None else token.id
        if number < size and self._texts[number] == token.content:
            is_own = self._sp.is_control(number) or self._sp.is_unknown(number) or self._sp.is_byte(number)
            if token.special and not is_own:
                self.special_tokens[token.content] = number
                self._unsafe.add(token.content)
        elif token.id is not None and token.special:
            self.special_tokens[token.content] = number
        elif token.id is not None:
            self._words[token.content] = token

    def _find_anchor(self) -> str:
        """A text in front of another that takes the dummy prefix, and that no piece holds together with more text."""
        first = _call(self._sp.encode, "a")[:1]
        if not first or not self._texts[first[0]].startswith(_SPACE):
            return ""
        for anchor in ("\n", "\t", "\x02"):
            alone, both = _call(self._sp.encode, anchor), _call(self._sp.encode, anchor + "a")
            if alone and both[: len(alone)] == alone and not any(anchor in t and len(t) > 1 for t in self._texts):
                return anchor
        return "\n"

    def _find_pattern(self) -> re.Pattern[str] | None:
        """Finds words, and special tokens that the library must not see."""
        sources = {name: re.escape(name) for name in self._unsafe}
        for name, token in self._words.items():
            edge = r"\b" if token.single_word else ""
            sources[name] = r"\s*" * token.lstrip + edge + re.escape(name) + edge + r"\s*" * token.rstrip
        longest_first = [sources[name] for name in sorted(sources, key=len, reverse=True)]
        return re.compile(f"({'|'.join(longest_first)})") if sources else None

    def reserve(self, names: Iterable[str]) -> None:
        """Makes those of the names that would be single tokens in a text special."""
        for name in names:
            if token := self._words.pop(name, None):
                self.special_tokens[name] = token.id  # type: ignore[assignment]
            elif name not in self.special_tokens and self._is_user_defined(name):
                self.special_tokens[name] = self._sp.piece_to_id(name)
                self._unsafe.add(name)
        self._pattern = self._find_pattern()

    def _is_user_defined(self, name: str) -> bool:
        # The library does not say. In the file, a piece is its text, its score, and its kind, which is 4.
        text = name.encode(errors="replace")
        piece = b"\x0a" + bytes([len(text)]) + re.escape(text) if len(text) < 128 else b"(?!)"
        return bool(re.search(piece + rb"(?:\x15.{4})?\x18\x04", self.model, re.DOTALL))

    def encode(self, text: str, preceded_by: PrecededBy = "control") -> list[int]:
        """Ids of plain text."""
        if not self._pattern:
            return self._encode(text, preceded_by)
        ids: list[int] = []
        for i, part in enumerate(self._pattern.split(text)):
            name = part if part in self._unsafe else part.strip() or part
            if i % 2 and name in self._words:
                ids.append(self._words[name].id)  # type: ignore[arg-type]
                preceded_by = "control"
                continue
            for piece in (part[:1], part[1:]) if i % 2 else (part,):  # a special token's text in two parts
                if piece:
                    ids += self._encode(piece, preceded_by)
                    preceded_by = "text"
        return ids

    def _encode(self, text: str, preceded_by: PrecededBy) -> list[int]:
        has_none = preceded_by == "text" or (preceded_by == "control" and self.dummy_prefix == "first")
        if not has_none and (self.dummy_prefix == "own" or not text.startswith((" ", _SPACE))):
            return _call(self._sp.encode, text)
        return _call(self._sp.encode, self._anchor + text)[len(self._anchor_ids) :]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        special, words = set(self.special_tokens.values()), {t.id: name for name, t in self._words.items()}
        # An embedding may have more rows than the tokenizer has ids.
        known = [i for i in map(int, ids) if i not in special and (i < len(self._texts) or i in words)]
        if not words:
            return _call(self._sp.decode, known)
        texts, group, behind_word = [], [], False
        for i in [*known, None]:
            if i is not None and i not in words:
                group.append(i)
                continue
            texts += [self._decode_group(group, behind_word), words.get(i, "")]
            group, behind_word = [], True
        return "".join(texts)

    def _decode_group(self, ids: list[int], behind_word: bool) -> str:
        if not behind_word or self.dummy_prefix != "first":
            return _call(self._sp.decode, ids)
        return _call(self._sp.decode, [*self._anchor_ids, *ids])[len(self._anchor) :]  # its space is no prefix

    def tokens_from(self, start: int) -> list[str]:
        """The tokens whose ids are at least `start`."""
        added = {**self.special_tokens, **{name: t.id for name, t in self._words.items()}}
        return [*self._texts[start:], *(name for name, i in added.items() if i >= max(start, len(self._texts)))]

    def pieces(self) -> list[Piece]:
        """The vocabulary, by id."""
        sp = self._sp
        predicates = {"control": sp.is_control, "byte": sp.is_byte, "unknown": sp.is_unknown}
        size = len(self._texts)
        kinds = [next((k for k, is_kind in predicates.items() if is_kind(i)), "normal") for i in range(size)]
        return [Piece(self._texts[i], sp.get_score(i), kind) for i, kind in enumerate(kinds)]


def without_normalizer(model: bytes) -> bytes:
    """A SentencePiece model that changes no character of a text: neither spaces nor line breaks."""
    # Of a field that is there twice, the parts of the later one count: its name, its table, and what trims spaces.
    spec = b"\x0a\x08identity" + b"\x12\x00" + b"\x20\x00"
    return model + b"\x1a" + bytes([len(spec)]) + spec


class TokenizerJson:
    """A Hugging Face tokenizer.json, and the tokens that its folder adds. Plain text never becomes a special token.

    Args:
      text: the content of the file.
      added: tokens of the folder's other files.

    Raises:
      TokenizerError: the text is not a readable tokenizer.json, or gives a token another id than another file.
    """

    def __init__(self, text: str, added: Sequence[AddedToken] = ()) -> None:
        spec = _check_spec(_call(json.loads, text))
        for token in spec.get("added_tokens") or ():
            token["special"] = token.get("special", False) and token["content"] not in TAGS
        self._full = _call(tokenizers.Tokenizer.from_str, text)
        self._full.no_padding()
        self._full.no_truncation()
        own = {
            t["content"]: bool(t.get("special")) and t["content"] not in TAGS for t in spec.get("added_tokens") or []
        }
        self._spec, self._more = spec, [t for t in added if self._is_new(t, own)]
        _call(self._full.add_tokens, [_to_library(t) for t in self._more])
        for token in added:
            if token.id is not None and (number := self._full.token_to_id(token.content)) != token.id:
                raise TokenizerError(f"it gives {token.content!a} the id {number}, another file {token.id}")
            own[token.content] = own.get(token.content, False) or (token.special and token.content not in TAGS)
        # The library may give a token another id than its file: that of the vocabulary.
        ids = {content: self._full.token_to_id(content) for content in own}
        known = {content: i for content, i in ids.items() if content and i is not None}
        self.special_tokens = {content: i for content, i in known.items() if own[content]}
        self.added = set(known)
        self._words = {content: i for content, i in known.items() if not own[content]}
        self._by_preceding: dict[str, tokenizers.Tokenizer] = {}
        self.vocab_size = 1 + max(self._full.get_vocab(with_added_tokens=True).values(), default=-1)
        if not self.vocab_size:
            raise TokenizerError("it has no tokens")

    def _is_new(self, token: AddedToken, own: Mapping[str, bool]) -> bool:
        is_known = self._full.token_to_id(token.content) is not None
        return token.content not in own and (token.id is not None or is_known)

    def tokens_from(self, start: int) -> list[str]:
        """The tokens whose ids are at least `start`."""
        return [token for token, i in self._full.get_vocab(with_added_tokens=True).items() if i >= start]

    def reserve(self, names: Iterable[str]) -> None:
        """Makes those of the names that are added tokens special."""
        self.special_tokens |= {name: self._words.pop(name) for name in names if name in self._words}
        self._by_preceding = {}

    def _encoder(self, preceded_by: PrecededBy) -> tokenizers.Tokenizer:
        if not self._by_preceding:
            plain = self._spec | {"post_processor": None, "truncation": None, "padding": None}
            plain = without_special(plain, self.special_tokens)
            specs = {"nothing": plain, "control": without_prefix(plain, ("first",))}
            specs["text"] = without_prefix(plain, ("first", "always"))
            for name, changed in specs.items():
                same = next((other for other in self._by_preceding if specs[other] == changed), None)
                self._by_preceding[name] = self._by_preceding[same] if same else self._make_encoder(changed)
        return self._by_preceding[preceded_by]

    def _make_encoder(self, spec: dict[str, Any]) -> tokenizers.Tokenizer:
        encoder = _call(tokenizers.Tokenizer.from_str, json.dumps(spec))
        _call(encoder.add_tokens, [_to_library(t) for t in self._more])
        # The library does not match special tokens in a text where this is set.
        encoder.encode_special_tokens = True
        _call(encoder.add_special_tokens, list(self.special_tokens))
        return encoder

    def encode(self, text: str, preceded_by: PrecededBy = "control") -> list[int]:
        """Ids of plain text."""
        return _call(self._encoder(preceded_by).encode, text, add_special_tokens=False).ids

    def encode_as_stored(self, text: str) -> list[int]:
        """Ids of a text as other programs make them: with the special tokens in it, and those put around it."""
        return _call(self._full.encode, text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        special, words = set(self.special_tokens.values()), {i: name for name, i in self._words.items()}
        plain = [int(i) for i in ids if i not in special]
        if not words or self._encoder("text") is self._encoder("control"):
            return _call(self._full.decode, plain, skip_special_tokens=False)
        # A space follows every word in the ids. The decoder takes it off at the beginning alone.
        groups = itertools.groupby(plain, lambda i: words.get(i))
        return "".join(
            _call(self._full.decode, list(group), skip_special_tokens=False)
            if word is None
            else word * len(list(group))
            for word, group in groups
        )


def _to_library(token: AddedToken) -> tokenizers.AddedToken:
    flags = {name: getattr(token, name) for name in ("normalized", "lstrip", "rstrip", "single_word")}
    return tokenizers.AddedToken(token.content, special=False, **flags)


def _check_spec(spec: Any) -> dict[str, Any]:
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise TokenizerError("it is not a JSON object with a model")
    return spec


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
