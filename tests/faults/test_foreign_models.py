"""Mutated tokenizers, chat templates and weight files are used, or refused on one line; no traceback, no wait, and
bounded memory. FOREIGN_INPUTS=20000 tries that many of each kind; with -s it prints the figures."""

import base64
import copy
import io
import json
import os
import random
import resource
import struct
import time
from collections import Counter

import hf_folders
import pytest
from etils import epath
from jax.sharding import Mesh
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from selfreward_jax.config import InputError
from selfreward_jax.llm import hf, worker_process
from selfreward_jax.llm.chat import builtin_template
from selfreward_jax.llm.hf_config import read_config
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.llm.llama import param_specs
from selfreward_jax.llm.tokenizer import train_sentencepiece
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import param_shardings

INPUTS = int(os.environ.get("FOREIGN_INPUTS", "0"))
CORPUS = ["Name three fruits. Of course: apple, plum and pear!", "What is two and two? It is four."] * 20
TEXT = "Name 12 fruits:\n\n\u00e9 \u2581 <s> \U0001f600 aaaaaaaaaaaaaaaaaaaaaaaa"
NUMBERS = [0, -1, 1, 2, 255, 2**31, 2**32 - 1, 2**32, 10**12, 2**63, 2**64 - 1, 10**400, 1.5, float("nan"), None, True]
TEXTS = ["", "a", " ", "<s>", "\ud800", "\0", "\x1b[2J", "a\nb", "\u2581", "\u00e9" * 500, "(a+)+$", "(", "(a*)*", "\\"]
ANYTHING = [*NUMBERS, *TEXTS, [], {}, [[]], [None], {"a": "b"}, ["a", "zz"]]


def try_many(few, make, use, seconds=7.0):
    """Makes and uses inputs by their number. Each must be used or refused on one printable line within that time."""
    counts, slowest = Counter(), 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(INPUTS or few):
        foreign = make(random.Random(number))
        start, refusal = time.monotonic(), ""
        try:
            use(foreign)
        except InputError as error:
            refusal = str(error)
        except BaseException as error:
            raise AssertionError(f"input {number}: {error!r}") from error
        slowest = max(slowest, time.monotonic() - start)
        assert time.monotonic() - start < seconds, number
        assert "\n" not in refusal, (number, refusal)
        assert refusal.isprintable(), (number, refusal)
        assert len(refusal) < 1500, (number, refusal)
        counts["refused" if refusal else "read"] += 1
    worker_process.end()
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    beside = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"{dict(counts)}, slowest {slowest:.2f} s, memory {here >> 10} MB more, {beside >> 10} MB in the worker")
    assert counts["read"]
    assert counts["refused"]
    assert here < 1 << 20  # kilobytes


# --- tokenizers -------------------------------------------------------------------------------------------------------

PARTS = {
    "normalizer": [
        {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 9999},
        {"type": "Replace", "pattern": {"Regex": ""}, "content": "xx"},
        {"type": "Prepend", "prepend": "x" * 100_000},
        {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}] * 20},
    ],
    "pre_tokenizer": [
        {"type": "FixedLength", "length": 0},
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": "a*a*[bc]|\\w"}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": "((a{1,9999}){1,9999}){1,9999}"}, "behavior": "Removed", "invert": True},
        {"type": "Metaspace", "replacement": "\u00e9", "prepend_scheme": "first", "split": True},
    ],
    "decoder": [
        {"type": "Strip", "content": "a", "start": 2**64 - 1, "stop": 2**64 - 1},
        {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
        {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 9999},
        {"type": "ByteFallback"},
    ],
    "post_processor": [{"type": "RobertaProcessing", "sep": ["a", 2**31], "cls": ["", 1], "trim_offsets": True}],
    "padding": [
        {"strategy": {"Fixed": 10**12}, "direction": "Left", "pad_to_multiple_of": None}
        | {"pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
    ],
    "truncation": [
        {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5},
        {"direction": "Right", "max_length": 10**12, "strategy": "OnlySecond", "stride": 0},
    ],
    "model": [
        {"type": "Unigram", "unk_id": 10**6, "vocab": [["a", 0.0]], "byte_fallback": False},
        {"type": "Unigram", "unk_id": None, "vocab": [], "byte_fallback": True},
        {"type": "BPE", "vocab": {}, "merges": []},
        {"type": "BPE", "vocab": {"a": 2**32 - 1, "b": 0, "ab": 1}, "merges": [["a", "b"]]},
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "x"},
        {"type": "WordPiece", "vocab": {"a": 1}, "unk_token": "x", "continuing_subword_prefix": "\u00e9"},
    ],
    "added_tokens": [
        [{"id": i, "content": text, "special": True, "single_word": False, "lstrip": True, "rstrip": True}]
        for i, text in ((10**9, "q"), (2**32 - 1, "a"), (0, ""))
    ],
}


def tokenizer_specs():
    """A tokenizer.json of each kind that models come with."""
    special = ["<unk>", "<s>", "</s>"]
    made = []
    for model, trainer in (
        (models.BPE(), {"vocab_size": 300}),
        (models.Unigram(), {"vocab_size": 80, "unk_token": "<unk>"}),
        (models.WordPiece(unk_token="<unk>"), {"vocab_size": 100}),
    ):
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("``", '"')])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Metaspace(prepend_scheme="first")]
        )
        tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        trainer = model.get_trainer().__class__(special_tokens=special, show_progress=False, **trainer)
        tokenizer.train_from_iterator(CORPUS, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        made.append(json.loads(tokenizer.to_str()))
    return made


def mutated(value, rng, parts=None):
    """A copy of a JSON value with some of its members replaced, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if parts and rng.random() < 0.4:
            name = rng.choice(sorted(parts))
            value[name] = copy.deepcopy(rng.choice(parts[name]))
            continue
        node, key = value, rng.choice(sorted(value))
        while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
            node = node[key]
            key = rng.randrange(len(node)) if isinstance(node, list) else rng.choice(sorted(node))
        kind = rng.random()
        if kind < 0.15:
            del node[key]
        elif kind < 0.3 and isinstance(node, list):
            node.insert(key, copy.deepcopy(rng.choice((node[key], *ANYTHING))))
        else:
            alike = [x for x in ANYTHING if type(x) is type(node[key])] if kind < 0.8 else []
            node[key] = copy.deepcopy(rng.choice(alike or ANYTHING))
        if not value:
            break
    return value


def flipped(data, rng):
    """The bytes with some of them changed, removed or added."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(max(1, len(data)))
        if (kind := rng.random()) < 0.5:
            data[at : at + 1] = bytes([rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))])
        elif kind < 0.7:
            del data[at : at + rng.randrange(1, 40)]
        elif kind < 0.9:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
        else:
            data[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(data)


def use_chat(folder):
    """Does with a folder's tokenizer and template what a run does."""
    chat = read_chat(epath.Path(folder))
    chat.has_system_role()
    example = chat.example(TEXT, TEXT)
    chat.response_text([*example.ids, chat.tokenizer.vocab_size + 5])
    chat.message_ids([("user", TEXT), ("assistant", TEXT), ("user", "")])


def sentencepiece_field(number, data):
    """A field of bytes in the wire format of protocol buffers."""
    out, size = bytearray([number << 3 | 2]), len(data)
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size]) + data


def test_any_tokenizer_json(tmp_path):
    specs = tokenizer_specs()
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')

    def make(rng):
        (tmp_path / "tokenizer.json").write_text(json.dumps(mutated(rng.choice(specs), rng, PARTS)))

    try_many(60, make, lambda _: use_chat(tmp_path))


def test_any_sentencepiece_model(tmp_path):
    plain = [train_sentencepiece(CORPUS, size, by_bytes) for size, by_bytes in ((120, False), (380, True))]
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    size = struct.pack("<I", 1024)

    def make(rng):
        data = rng.choice(plain)
        if rng.random() < 0.5:  # a table of a normalizer, whose entries point at each other
            table = sentencepiece_field(2, size + rng.randbytes(1024) + b"ab\0")
            data += sentencepiece_field(3, table)
        else:
            data = flipped(data, rng)
        (tmp_path / "tokenizer.model").write_bytes(data)

    try_many(60, make, lambda _: use_chat(tmp_path))
