"""Texts that tokenizers stumble over, and small tokenizers of each kind, as Hugging Face folders. Both are functions of
their arguments, so that the golden ids in tests/goldens are of exactly these."""

import io
import json
import random
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "Name three fruits. Of course: apple, plum and pear!",
    "What is two and two? It is four.\n\nYou are kind. def f(x):\n    return x + 1",
    "Größe, naïve café, 12345 and 3.14: the quick brown fox jumps over the lazy dog's tail.",
    "It isn't what we've said; they'll see. https://example.com/a?b=c&d=e#f",
] * 9
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[PAD]"]
# Words: matched in text. Each flag of an added token once.
WORDS = [
    AddedToken("<think>", normalized=False),
    AddedToken("</think>", normalized=True),
    AddedToken("covfefe", normalized=False),
    AddedToken("<tool>", normalized=False, lstrip=True, rstrip=True),
    AddedToken("cat", normalized=False, single_word=True),
    AddedToken("   ", normalized=False),
]
_PARTS = [
    *(
        "the",
        "Two",
        "apple",
        "isn't",
        "We'VE",
        "DEF",
        "return",
        "x_1",
        "naïve",
        "cafe\u0301",
        "\ufb01ne",
        "ÅÉ",
        "straße",
    ),
    *("12345", "3.14", "1,000", "\uff12\uff10", "½", "0x1F", "-7", "1e-9", "٣", "²"),
    *(" ", "  ", "   ", "    ", "\t", "\n", "\n\n", "\r\n", "\n \n", "\u00a0", "\u2003", "\u200b", "\u3000", "\ufeff"),
    *(
        "😀",
        "👨‍👩‍👧",
        "🇩🇪",
        "👍🏽",
        "中文",
        "日本語",
        "한국어",
        "русский",
        "العربية",
        "हिन्दी",
        "ไทย",
        "\U0001d400",
        "\u0301",
    ),
    *(
        "!",
        "?!",
        "...",
        "“",
        "”",
        "—",
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        "<",
        ">",
        "<<",
        "|",
        "\\",
        "/",
        "#",
        "@",
        "&",
        "`",
    ),
    *(
        "def f(x):\n    return x + 1",
        "if (a && b) { c(); }",
        "<div class='a'>",
        "SELECT * FROM t;",
        "x = {'a': [1, 2]}",
    ),
    *("https://example.com/a?b=c", "a@b.de", "C:\\dir", "$1", "%s", "\x00", "\x07", "▁", "Ġ", "\ufffd", "\uff41"),
    *(
        "<think>",
        "</think>",
        "covfefe",
        "Covfefe",
        "<tool>",
        "cat",
        "cats",
        "concat",
        "<think",
        "think>",
        "<|im_",
        "im_end|>",
    ),
]


def texts(number: int = 500) -> list[str]:
    """Hard strings. No special token occurs in one: it would never be made from text here, and elsewhere it would."""
    rng, made = random.Random(26), []
    while len(made) < number:
        text = "".join(rng.choice(_PARTS) + rng.choice(("", "", " ")) for _ in range(rng.randrange(1, 12)))
        if not any(token in text for token in SPECIAL):
            made.append(text)
    return made


def _byte_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def _sentencepiece_bpe(scheme: str) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    first = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=first, show_progress=False))
    spec = json.loads(made.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]  # bytes are ordinary pieces
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def _unigram() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace("``", '"')])
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def _wordpiece() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    return made


KINDS = {
    "byte_level": _byte_level,
    "sentencepiece_first": lambda: _sentencepiece_bpe("first"),
    "sentencepiece_always": lambda: _sentencepiece_bpe("always"),
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def specification(kind: str) -> str:
    """tokenizer.json of a kind with added tokens. Another version of the library may train another one: it is stored
    with its ids."""
    made = KINDS[kind]()
    made.add_special_tokens(SPECIAL)
    made.add_tokens(WORDS)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made.to_str()


def write_folder(folder: Path, spec: str, **config: object) -> Path:
    """A folder with a tokenizer.json, and fields of its tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(spec)
    fields = {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": CHATML}
    fields |= {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def sentencepiece_model(kind: str) -> bytes:
    """A tokenizer.model as of Llama, or as of Gemma: no space in front; runs of spaces and line breaks are pieces."""
    model, gemma = io.BytesIO(), kind == "gemma"
    turns = ["<start_of_turn>", "<end_of_turn>", *("\n" * n for n in range(1, 8)), *("▁" * n for n in range(2, 32))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity" if gemma else "nmt_nfkc",
        remove_extra_whitespaces=not gemma,
        add_dummy_prefix=not gemma,
        user_defined_symbols=turns if gemma else [],
        pad_id=0 if gemma else -1,
        unk_id=3 if gemma else 0,
        bos_id=2 if gemma else 1,
        eos_id=1 if gemma else 2,
        bos_piece="<bos>" if gemma else "<s>",
        eos_piece="<eos>" if gemma else "</s>",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


MODELS = {"llama": {}, "llama_legacy": {"legacy": True}, "gemma": {}}  # fields of tokenizer_config.json


def write_model_folder(folder: Path, kind: str, model: bytes) -> Path:
    """A folder with a tokenizer.model, and with added_tokens.json as of a Llama that got chat marks and words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    fields = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    if kind != "gemma":
        size = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
        added = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "covfefe")
        (folder / "added_tokens.json").write_text(json.dumps({token: size + i for i, token in enumerate(added)}))
        fields = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields | MODELS[kind]))
    return folder
