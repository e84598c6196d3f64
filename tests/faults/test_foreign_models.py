"""Mutated tokenizers, chat templates and weight files are used, or refused on one line; no traceback, no wait, and
bounded memory. FOREIGN_INPUTS=20000 tries that many of each kind; with -s it prints the figures."""

import copy
import json
import os
import random
import resource
import struct
import time
from collections import Counter

import hf_folders
from etils import epath
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from selfreward_jax.config import InputError
from selfreward_jax.llm import hf, worker_process
from selfreward_jax.llm.chat import builtin_template
from selfreward_jax.llm.hf_config import read_config
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.llm.parameters import param_specs
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
    chat.example(f"{TEXT}\n\n{TEXT}", TEXT, system=TEXT)
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

    try_many(15, make, lambda _: use_chat(tmp_path))


def test_any_sentencepiece_model(tmp_path):
    plain = [train_sentencepiece(CORPUS, size, by_bytes) for size, by_bytes in ((120, False), (380, True))]
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    size = struct.pack("<I", 1024)

    def make(rng):
        data = rng.choice(plain)
        if rng.random() < 0.5:  # a table of a normalizer, whose entries point at each other
            table = sentencepiece_field(2, size + rng.randbytes(1024) + b"ab\0")
            data += sentencepiece_field(3, table)
        elif rng.random() < 0.8:
            data = flipped(data, rng)
        (tmp_path / "tokenizer.model").write_bytes(data)

    try_many(15, make, lambda _: use_chat(tmp_path))


# --- chat templates ---------------------------------------------------------------------------------------------------

TEMPLATES = [
    builtin_template("plain"),
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}",
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}"
    "{% endif %}{{ bos_token }}{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "{%- set ns = namespace(n=0) %}{%- macro turn(m) %}<s>{{ m.role }} {{ m['content'].strip() }}</s>{% endmacro %}"
    "{%- for m in messages %}{% set ns.n = ns.n + 1 %}{{ turn(m) }}{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<s>assistant ' }}{% endif %}",
]
FRAGMENTS = r"""
{% for i in range(9) %} | {% for a in messages %} | {% for a in range(99999) %} | {% endfor %} | {% if x %} | {% else %}
{% endif %} | {% break %} | {% macro f(x) %}{{ f(x) }}{% endmacro %} | {{ f(1) }} | {{ | }} | {% raw %} | {# | #} | (
{% set x = messages %} | {% set x = x ~ x %} | {% set ns.n = ns.n * 9 %} | {{ x }} | {{ x.a.b.c }} | {{ x[::-1] }}
{{ 'x' * 10 ** 9 }} | {{ 'x' * 199999 }} | {{ 9 ** 9 ** 9 }} | {{ range(10 ** 12) }} | {{ range(99999)|list }}
{{ ''.__class__.__mro__ }} | {{ messages.append(1) }} | {{ cycler.__init__.__globals__ }} | {{ 1 / 0 }} | {{ self }}
{{ '%99999999d' % 1 }} | {{ 'x'.center(10 ** 9) }} | {{ lipsum(n=999) }} | {% include 'a' %} | {{ loop(messages) }}
{{ raise_exception('\n\x1b[2J') }} | {{ messages|tojson }} | {{ messages|map(attribute='a.b')|list }} | {{ loop.index }}
{% extends messages %} | {{ caller() }} | {% call f(1) %} | {{ [1] * 10 ** 8 }} | <s> | </s> | {{ 'a'|indent(10 ** 9) }}
{{ dict(a=dict) }} | {{ strftime_now('%Y') }} | {{ messages|groupby('role') }} | {{ messages[0]['content'] }}
"""
FRAGMENTS = [fragment for line in FRAGMENTS.strip().splitlines() for fragment in line.split(" | ")]
FRAGMENTS += ["\ue0000\ue001", "\ue000" + "9" * 5000 + "\ue001", "\ud800", "\0", "(" * 300, "{{ " + "[" * 300]
FRAGMENTS += ["{% if 1 %}" * 90, "{{ 'a'" + "|e" * 5000 + "}}"]


def mutated_text(text, rng):
    """The text with parts removed, doubled or moved, or with a fragment of a template in it."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice((0, 1, 3, 20)))
        kind = rng.random()
        if kind < 0.5:
            text = text[:start] + rng.choice(FRAGMENTS) + text[end:]
        elif kind < 0.75:
            text = text[:start] + text[end:]
        else:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + text[start:end] + text[at:]
    return text


def test_any_chat_template(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_specs()[0]))

    def make(rng):
        template = mutated_text(rng.choice(TEMPLATES), rng)
        if rng.random() < 0.1:
            template = rng.choice((ANYTHING, [[{"name": rng.choice(ANYTHING), "template": x}] for x in ANYTHING]))
            template = rng.choice([*template, [{"name": "default", "template": rng.choice(ANYTHING)}, 1]])
        config = {"eos_token": "</s>", "bos_token": "<s>", "chat_template": template}
        if rng.random() < 0.2:
            config["added_tokens_decoder"] = rng.choice((rng.choice(ANYTHING), {"5": rng.choice(ANYTHING)}))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

    try_many(15, make, lambda _: use_chat(tmp_path), seconds=4 * worker_process.MAX_SECONDS)


# --- weights ----------------------------------------------------------------------------------------------------------

DTYPES = ["F32", "F16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "F6_E2M3", "C64", "f32", "", "X", "F32\n", None, 1, []]
FILES = ["../../etc/passwd", "/etc/passwd", "../a.safetensors", "pipe.safetensors", "folder.safetensors", "", "\ud800"]
FILES += [
    "device.safetensors",
    "loop.safetensors",
    "missing.safetensors",
    "x" * 300 + ".safetensors",
    "C:\\a",
    None,
    [],
]


def mutated_header(header, size, rng):
    """The header of a safetensors file with some of its fields changed."""
    header = copy.deepcopy(header)
    for _ in range(rng.choice((0, 1, 1, 2))):
        name = rng.choice(sorted(header))
        tensor, kind = header[name], rng.random()
        if not isinstance(tensor, dict) or kind < 0.2:
            header[name] = rng.choice(ANYTHING)
        elif kind < 0.4:
            header[rng.choice(("__metadata__", "x", *filter(None, TEXTS)))] = header.pop(name)
        elif kind < 0.6:
            tensor["shape"] = rng.choice(([10**12] * 2, [2**63, 2], [0], [], None, [rng.choice(NUMBERS)]))
        elif kind < 0.8:
            offsets = rng.choice(([0, 4], [4, 0], [size, size], [0], None, "ab"))
            tensor["data_offsets"] = rng.choice((offsets, [0, rng.choice(NUMBERS)], [rng.choice(NUMBERS), size]))
        else:
            tensor["dtype"] = rng.choice(DTYPES)
    return header


def write_weights(folder, original, rng):
    """model.safetensors, or an index with one file, with something wrong in most of them."""
    length = struct.unpack("<Q", original[:8])[0]
    header, body = json.loads(original[8 : 8 + length]), original[8 + length :]
    text = json.dumps(mutated_header(header, len(body), rng)).encode()
    text = flipped(text, rng) if rng.random() < 0.1 else text
    size = rng.choice((0, len(text) - 1, len(text) + 1, 2**32, 2**63, 2**64 - 1)) if rng.random() < 0.1 else len(text)
    data = struct.pack("<Q", size) + text + (body if rng.random() < 0.9 else body[: rng.randrange(len(body))])
    index = folder / "model.safetensors.index.json"
    index.unlink(missing_ok=True)
    (folder / "model.safetensors").write_bytes(data)
    if rng.random() < 0.5:
        weight_map = dict.fromkeys(header, "model.safetensors")
        for _ in range(rng.choice((0, 1, 2))):
            name = rng.choice(sorted(weight_map))
            if rng.random() < 0.6:
                weight_map[name] = rng.choice(FILES)
            else:
                weight_map[rng.choice(TEXTS)] = weight_map.pop(name)
        whole = {"weight_map": weight_map} if rng.random() < 0.9 else rng.choice([*ANYTHING, {"weight_map": []}])
        index.write_text(json.dumps(whole) if rng.random() < 0.95 else "[" * 100_000)


def test_any_weights(tmp_path, monkeypatch):
    folder = hf_folders.write(tmp_path / "m", "qwen2")
    original = (folder / "model.safetensors").read_bytes()
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "folder.safetensors").mkdir()
    (folder / "device.safetensors").symlink_to("/dev/zero")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "a.safetensors").write_bytes(original)
    cfg, _ = read_config(epath.Path(folder))
    shardings = param_shardings(param_specs(cfg), make_mesh())
    safe_open = hf.safetensors.safe_open

    def open_here(path, **options):
        assert os.path.dirname(os.path.abspath(path)) == str(folder)  # nothing outside is read
        assert os.path.isfile(path)  # a pipe would wait
        return safe_open(path, **options)

    monkeypatch.setattr(hf.safetensors, "safe_open", open_here)
    try_many(
        20, lambda rng: write_weights(folder, original, rng), lambda _: hf.load(epath.Path(folder), cfg, shardings)
    )
