"""SentencePiece tokenizers: load one, or train one on a corpus."""

import io
import random
from collections.abc import Iterable, Sequence
from typing import Protocol

import sentencepiece as spm

# Control pieces: SentencePiece never produces them from text, so no user or model can write one.
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"


class Tokenizer(Protocol):
    """What the rest of the system asks of a tokenizer."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a control id, whatever the text says."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control ids are left out."""
        ...

    def control(self, piece: str) -> int:
        """The id of a control piece; KeyError if this tokenizer has none of that name."""
        ...


class SentencePiece:
    """A SentencePiece model held in memory."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._sp = spm.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._sp.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self._sp.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control ids left out."""
        return self._sp.decode([int(i) for i in ids if not self._sp.is_control(int(i))])

    def control(self, piece: str) -> int:
        """The id of a control piece."""
        i = self._sp.piece_to_id(piece)
        if not self._sp.is_control(i):
            raise KeyError(f"the tokenizer has no control piece {piece}")
        return i


def train_sentencepiece(texts: Iterable[str], vocab_size: int, byte_fallback: bool) -> bytes:
    """Trains a BPE model with SentencePiece's own trainer; the same texts give the same bytes.

    Args:
      texts: the corpus. At most 50,000 texts of it are used, chosen evenly by a fixed shuffle.
      vocab_size: an upper bound on V; a small corpus yields fewer pieces.
      byte_fallback: spell unknown characters as bytes (256 pieces) so that any text survives a round trip;
        without it they become the unknown piece.
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
        # The default normaliser would turn line breaks into spaces and full-width letters into plain ones.
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
        num_threads=1,  # with more, sums are taken in another order and pieces can differ
        minloglevel=2,
    )
    return model.getvalue()
