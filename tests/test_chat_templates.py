"""Chat templates of models: the same ids as transformers for ordinary text, and no control ids from any text."""

import functools
import json
import re
from pathlib import Path

import pytest
import tokenizers
from etils import epath
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from selfreward_jax.llm import hub
from selfreward_jax.llm.chat import Chat, ChatError, builtin_template, render
from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.llm.tokenizer import SentencePiece, TokenizerJson, train_sentencepiece

CORPUS = [
    "Name three fruits. Of course: apple, plum and pear!",
    "What is two and two? It is four.\n\nYou are kind.",
] * 9
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<|endoftext|>"]
ADDED = ["<think>", "</think>"]  # added, but not special: models write them

# The three common shapes: control pieces around the role, ids for header and end, and roles in plain text.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'].strip() }} [/INST]"
    "{% else %} {{ m['content'].strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "inst": INST, "plain": builtin_template("plain")}


def byte_level():
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made, trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def with_prefix(normalizer=None, scheme=None):
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if normalizer:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    first = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    return made, trainers.BpeTrainer(vocab_size=600, special_tokens=first)


KINDS = {
    "bytes": byte_level,
    "prepend": lambda: with_prefix(normalizer=True),
    "first": lambda: with_prefix(scheme="first"),
    "always": lambda: with_prefix(scheme="always"),
}


def tokenizer_json(kind):
    made, trainer = KINDS[kind]()
    made.train_from_iterator(CORPUS, trainer)
    if kind != "bytes":  # byte pieces are ordinary pieces of the vocabulary, not special tokens
        spec = json.loads(made.to_str())
        spec["added_tokens"] = []
        made = tokenizers.Tokenizer.from_str(json.dumps(spec))
    made.add_special_tokens(SPECIAL)
    made.add_tokens(ADDED)
    return made.to_str()


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    text = tokenizer_json(request.param)
    return tokenizers.Tokenizer.from_str(text), TokenizerJson(text)


@pytest.fixture(scope="module", params=TEMPLATES)
def model(request, kind):
    reference, tokenizer = kind
    return reference, Chat(tokenizer, TEMPLATES[request.param], "<s>", "</s>", [tokenizer.special_tokens["</s>"]])


CONVERSATION = [
    ("user", "Name three fruits."),
    ("assistant", "apple, plum and pear!"),
    ("user", "What is\n two and two? é"),
]


@pytest.mark.parametrize("turns", [1, 3])
def test_ids_equal_those_of_the_full_rendered_text(model, turns):
    reference, chat = model
    messages = [{"role": role, "content": text} for role, text in CONVERSATION[:turns]]
    text = render(chat.template, messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
    assert chat.message_ids(CONVERSATION[:turns]) == reference.encode(text, add_special_tokens=False).ids


def test_an_example_equals_the_full_text_up_to_the_closing_id(model):
    reference, chat = model
    messages = [{"role": role, "content": text} for role, text in CONVERSATION[:2]]
    text = render(chat.template, messages=messages, add_generation_prompt=False, bos_token="<s>", eos_token="</s>")
    made, ids = (
        chat.example(CONVERSATION[0][1], CONVERSATION[1][1]),
        reference.encode(text, add_special_tokens=False).ids,
    )
    assert made.ids == ids[: len(made.ids)]
    targets = [i for i, target in zip(made.ids, made.target, strict=True) if target]
    assert targets[-1] in chat.stop_ids
    assert not set(targets[:-1]) & set(chat.tokenizer.special_tokens.values())
    assert chat.response_text(targets) == CONVERSATION[1][1]
    assert made.ids[: len(made.ids) - len(targets)] == chat.prompt_ids(CONVERSATION[0][1])


def test_bos_occurs_once_if_the_template_has_it_and_never_otherwise(model):
    _, chat = model
    count = chat.prompt_ids("Name three fruits.").count(chat.tokenizer.special_tokens["<s>"])
    assert count == ("bos_token" in chat.template)


TEXT = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        st.sampled_from([*SPECIAL, *ADDED, "[INST]", "[/INST]", "<unk>", "<0x41>", "\ue0000\ue001", "{{ bos_token }}"]),
    ),
    max_size=6,
).map("".join)


@given(prompt=TEXT, response=TEXT)
def test_text_is_never_encoded_as_a_control_id(model, prompt, response):
    _, chat = model
    control = set(chat.tokenizer.special_tokens.values())
    assert not control & set(chat.tokenizer.encode(prompt))
    plain, made = chat.example("a", "b"), chat.example(prompt, response)
    assert [i for i in made.ids if i in control] == [i for i in plain.ids if i in control]
    assert made.ids[: len(chat.prompt_ids(prompt))] == chat.prompt_ids(prompt)


@given(text=TEXT)
@example(text="  ")
@example(text="  a ")
def test_any_text_survives_a_round_trip(kind, text):
    _, tokenizer = kind
    text = text.replace("▁", "")  # the symbol for a space inside pieces
    for preceded_by in ("nothing", "control", "text"):
        back = tokenizer.decode(tokenizer.encode(text, preceded_by))
        # A leading space is lost where it equals the dummy prefix, as with the library's own metaspace.
        assert back in (text, text.removeprefix(" "))


@given(text=TEXT)
def test_text_after_text_gets_no_dummy_prefix(text):
    made = SentencePiece(SP)
    text = text.replace("▁", "")
    ids = made.encode(text, "text")
    assert made.decode([*made.encode("a\n", "control"), *ids]) == "a\n" + text


SP = train_sentencepiece([*CORPUS, "a < b | c > d"], 420, byte_fallback=True)


SHARED = Path(__file__).parents[2] / "shared" / "data"
REAL = [SHARED / "tokenizers" / "mistral_v1.model", SHARED / "stories260k" / "hf" / "tokenizer.model"]
CONTROL_TEXT = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from(["<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<0x0A>", "<|eot_id|>", " ", "\n", "Hello"]),
    ),
    max_size=6,
).map("".join)


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.name)
@given(text=CONTROL_TEXT)
def test_real_tokenizers_preserve_any_text_and_make_no_control_ids(path, text):
    if not path.exists():
        pytest.skip("the shared data are not available")
    made = real(path)
    text = text.replace("▁", "").replace("\0", "")
    for preceded_by in ("nothing", "control"):
        ids = made.encode(text, preceded_by)
        assert not set(ids) & set(made.special_tokens.values())
        if path == REAL[0]:  # the other one normalizes: two spaces in a row become one
            assert made.decode(ids) == text
    after = made.encode(text, "text")
    assert not set(after) & set(made.special_tokens.values())
    reference = made.decode(made.encode("a\n" + text))
    assert made.decode([*made.encode("a\n"), *after]) == reference


@functools.cache
def real(path):
    return SentencePiece(path.read_bytes())


@pytest.mark.skipif(not REAL[0].exists(), reason="the shared data are not available")
def test_a_llama_chat_with_a_real_tokenizer():
    """Pieces worked out by hand from the vocabulary: one space in front of [INST], none doubled, BOS once."""
    made = real(REAL[0])
    chat = Chat(made, INST, "<s>", "</s>")
    piece = {p.text: i for i, p in enumerate(made.pieces())}
    head = [piece[p] for p in ("<s>", "▁[", "INST", "]", "▁Hello", "▁[", "/", "INST", "]")]
    assert chat.prompt_ids("Hello") == head
    assert chat.example("Hello", "Yes").ids == [*head, piece["▁Yes"], piece["▁"], piece["</s>"]]


# --- reading a folder ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer_json("bytes"))
    write(tmp_path, "tokenizer_config.json", {"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    return tmp_path


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))


def ids(chat, *pieces):
    return tuple(sorted(chat.tokenizer.special_tokens[p] for p in pieces))


def test_a_folder_without_a_template_gets_the_builtin_one(folder):
    chat = read_chat(epath.Path(folder))
    assert (chat.template, chat.bos, chat.eos) == (builtin_template("plain"), "<s>", "</s>")
    assert chat.stop_ids == ids(chat, "</s>")


def test_stop_ids_of_all_files_are_used(folder):
    control = TokenizerJson(tokenizer_json("bytes")).special_tokens
    write(folder, "generation_config.json", {"eos_token_id": [control["<|endoftext|>"], control["<|eot_id|>"]]})
    write(folder, "config.json", {"eos_token_id": control["</s>"], "vocab_size": 1000})
    (folder / "chat_template.jinja").write_text(CHATML)
    chat = read_chat(epath.Path(folder))
    assert chat.stop_ids == ids(chat, "<|endoftext|>", "<|eot_id|>", "</s>", "<|im_end|>")


@pytest.mark.parametrize("given", [CHATML, [{"name": "tool", "template": ""}, {"name": "default", "template": CHATML}]])
def test_the_template_of_the_tokenizers_config_is_used(folder, given):
    write(folder, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "chat_template": given})
    assert read_chat(epath.Path(folder)).template == CHATML


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}{{ cycler.__init__.__globals__.os.system('false') }}",
    "{% for m in messages %}{{ m.update({'content': ''}) }}{% endfor %}",
    "{{ raise_exception('no') }}",
    "{% for m in messages %}",
    "{{ messages[7].content.x }}",
    "{% for m in messages %}{{ m.role }}{% endfor %}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_that_escapes_or_fails_is_refused_in_one_line(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelFormatError, match=r"\btemplate\b") as error:
        read_chat(epath.Path(folder))
    assert "\n" not in str(error.value)


def test_a_template_that_never_ends_a_response_needs_an_end_of_text(kind):
    _, tokenizer = kind
    endless = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    with pytest.raises(ChatError, match=r"\btemplate\b"):
        Chat(tokenizer, endless, None, None)
    assert Chat(tokenizer, endless, None, "</s>").stop_ids == (tokenizer.special_tokens["</s>"],)


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder):
    size = TokenizerJson((folder / "tokenizer.json").read_text()).vocab_size
    write(folder, "config.json", {"vocab_size": 100})
    with pytest.raises(ModelFormatError, match=rf"\b{size}\b.*\b100\b"):
        read_chat(epath.Path(folder))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": {"type": "Nonsense"}}'),
        ("tokenizer_config.json", "[]"),
        ("generation_config.json", "{"),
        ("tokenizer_config.json", '{"bos_token": "hello"}'),
    ],
)
def test_the_error_names_a_damaged_file(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(ModelFormatError, match=name.split("_")[0]) as error:
        read_chat(epath.Path(folder))
    assert "\n" not in str(error.value)


def test_the_error_names_a_damaged_sentencepiece_model(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"no")
    with pytest.raises(ModelFormatError, match=r"tokenizer\.model"):
        read_chat(epath.Path(tmp_path))


def test_the_error_names_the_missing_tokenizer_files(tmp_path):
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json.*tokenizer\.model"):
        read_chat(epath.Path(tmp_path))


# --- the hub ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hub:meta/llama", "hub:meta/llama@", "hub:llama@main", "hub:../x/y@z", "hub:a/b@c/d"])
def test_a_hub_name_without_a_revision_is_refused_without_a_request(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("sent a request to the hub"))
    with pytest.raises(ModelFormatError, match=re.escape(name)):
        hub.resolve_model_dir(name)


def test_a_hub_download_has_the_revision_and_no_code(monkeypatch, tmp_path):
    request = {}

    def download(name, **options):
        request.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name in ("hub:HuggingFaceTB/SmolLM2-135M@93efa2f", "HuggingFaceTB/SmolLM2-135M@93efa2f"):
        assert hub.resolve_model_dir(name) == epath.Path(tmp_path)
    assert (request["name"], request["revision"]) == ("HuggingFaceTB/SmolLM2-135M", "93efa2f")
    assert not [p for p in request["allow_patterns"] if p.endswith((".bin", ".py", ".pt", "*"))]
    assert "*.safetensors" in request["allow_patterns"]
    hub.resolve_model_dir("hub:HuggingFaceTB/SmolLM2-135M@93efa2f", weights=False)
    assert not [p for p in request["allow_patterns"] if "safetensors" in p]


def test_an_unreachable_hub_is_reported_in_one_line(monkeypatch):
    def download(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelFormatError, match=r"a/b.*no route to host") as error:
        hub.resolve_model_dir("hub:a/b@c")
    assert "\n" not in str(error.value)


def test_the_error_names_a_missing_folder():
    with pytest.raises(ModelFormatError, match="'SmolLM2-135M'"):
        hub.resolve_model_dir("SmolLM2-135M")
