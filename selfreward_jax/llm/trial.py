"""Tries a tokenizer before it is used. Its library can end the process: so this runs in the one of `worker.py`."""

from collections.abc import Callable, Sequence
from typing import Any

import sentencepiece
import tokenizers

# Every printable ASCII character, accents, other scripts, marks, and runs that pathological patterns stumble over.
SAMPLE = (
    f"{''.join(map(chr, range(32, 127)))}\n\n\tNaïve cafe\u0301 \u2581\u4e2d\u6587 \u0440\u0443 \U0001f600\ufb01\x00 "
    f"{'a' * 1000} {'aB' * 100} {'1' * 300}{' ' * 300}{'!?' * 50}\n{'word, ' * 50}"
)
MAX_IDS = 50 * len(SAMPLE)


def use_tokenizer(kind: str, data: str) -> None:
    """Reads a tokenizer, encodes a sample and decodes ids.

    A text that the tokenizer has no ids for is no fault: another text may have some.

    Args:
      kind: "json", or "sentencepiece".
      data: the bytes of its file, as Latin-1.

    Raises:
      ValueError: it cannot be read or used; the message says why.
    """
    encode, decode, vocab_size = (_json if kind == "json" else _sentencepiece)(data.encode("latin-1"))
    ids = _try(encode, SAMPLE)
    for some in (ids, *([i] for i in {0, 1, 2, vocab_size - 1, *ids})):
        _try(decode, some)
    if len(ids) > MAX_IDS:
        raise ValueError(f"it makes {len(ids):,} ids of a text of {len(SAMPLE):,} characters")


def _try(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except MemoryError:
        raise
    except Exception:
        return []
    except BaseException as error:  # a panic
        raise ValueError(f"it fails on a text: {error}") from None


Uses = tuple[Callable[[str], Sequence[int]], Callable[[list[int]], str], int]


def _json(data: bytes) -> Uses:
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except BaseException as error:  # a panic of the library is no Exception
        raise ValueError(str(error)) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.decode, vocab_size


def _sentencepiece(data: bytes) -> Uses:
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=data)
        tokenizer.id_to_piece(list(range(tokenizer.vocab_size())))
    except Exception as error:
        raise ValueError(str(error)) from None
    return tokenizer.encode, tokenizer.decode, tokenizer.vocab_size()
