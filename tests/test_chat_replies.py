"""A reply that is read back is the reply that was taught: templates with thinking blocks, without a generation prompt,
with text around the answer. And the templates that a folder may hold."""

import json
import re

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from test_chat_templates import CHATML, tokenizer_json

from selfreward_jax.llm import hf_tokenizer
from selfreward_jax.llm.chat import Chat, ChatError, builtin_template, render
from selfreward_jax.llm.chat_check import check_chat
from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.llm.thinking import split_reply
from selfreward_jax.llm.tokenizer import TokenizerJson

USER = "<|im_start|>user\n{{ m.content }}<|im_end|>\n"
# An empty block around the last answer, reasoning taken from the reply, and a switch, as of Qwen3.
SWITCH = (
    "{% for m in messages %}{% if m.role == 'user' %}" + USER + "{% else %}"
    "{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}<|im_start|>assistant\n"
    "{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ answer }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
NO_SWITCH = SWITCH.replace("enable_thinking is false", "false")
# The generation prompt opens a block, and earlier answers have none, as of R1's distilled models.
OPENS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}" + USER + "{% else %}"
    "<|im_start|>{{ m.content.split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|><think>\n' }}{% endif %}"
)
# A lone closing tag where the model does not think, as of DeepSeek's later models.
CLOSES = OPENS.replace("<|im_start|>{{ m.content", "<|im_start|></think>{{ m.content").replace(
    "'<|im_start|><think>\n'", "'<|im_start|>' + ('<think>' if thinking else '</think>')"
)
HISTORY = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")  # removes blocks, writes none
THINKING = {"switch": SWITCH, "no switch": NO_SWITCH, "opens": OPENS, "closes": CLOSES, "history": HISTORY}
NO_PROMPT = CHATML[: CHATML.index("{% if add_generation_prompt")]
WORDS = "{% for m in messages %}{{ m.role.upper() }}: {{ m.content }}{{ eos_token }}{% endfor %}"
FINAL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '<|im_end|>final\n' if m.role == 'assistant' }}"
    "{{ m.content }}{{ ' (end)' if m.role == 'assistant' }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
TEMPLATES = {**THINKING, "no generation prompt": NO_PROMPT, "words": WORDS, "text around": FINAL}
TEMPLATES |= {"no prompt, a block": SWITCH[: SWITCH.index("{% if add_generation_prompt")]}
TOKENIZER = tokenizer_json("bytes")


def make(template, thinks=False):
    tokenizer = TokenizerJson(TOKENIZER)
    return Chat(tokenizer, template, "<s>", "</s>", [tokenizer.special_tokens["</s>"]], thinks)


def targets(chat, reply):
    example = chat.example("Name three fruits.", reply)
    return [i for i, is_target in zip(example.ids, example.target, strict=True) if is_target]


@pytest.fixture(scope="module", params=[(name, thinks) for name in TEMPLATES for thinks in (False, True)], ids=str)
def chat(request):
    name, thinks = request.param
    return make(TEMPLATES[name], thinks)


REPLY = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["<think>", "assistant", "assistant\n", "a</think>b", "ASSISTANT: a", "<think>\n\n", "  a", "x <think>y</think> z"]
)


@given(reply=REPLY)
def test_three_rounds_of_teaching_and_reading_change_nothing(chat, reply):
    reply = chat.response_text(targets(chat, reply))
    ids = targets(chat, reply)
    for _ in range(3):
        assert chat.response_text(ids) == reply
        assert targets(chat, chat.response_text(ids)) == ids


@pytest.mark.parametrize("template", THINKING.values(), ids=THINKING)
@pytest.mark.parametrize("thinks", [False, True])
def test_reasoning_is_kept_apart_from_the_answer(template, thinks):
    chat = make(template, thinks)
    reply = "<think>\nAn apple is a fruit.\n</think>\n\napple, plum"
    read = chat.split_response(targets(chat, reply))
    assert read == ("An apple is a fruit." * thinks, "apple, plum")
    assert chat.response_text(targets(chat, reply)) == "apple, plum"
    if not thinks:  # the answer alone is taught, and the prompt holds the block
        assert targets(chat, reply) == targets(chat, "apple, plum")
        assert targets(chat, "apple, plum") == [*chat.tokenizer.encode("apple, plum"), targets(chat, "a")[-1]]
    turns = [[("user", "a"), ("assistant", text), ("user", "b")] for text in (reply, "apple, plum")]
    assert chat.message_ids(turns[0]) == chat.message_ids(turns[1])
    check_chat(chat, chat.tokenizer.vocab_size)


def test_tags_that_are_special_tokens_are_read_as_well():
    spec = json.loads(TOKENIZER)
    for token in spec["added_tokens"]:
        token["special"] = True
    tokenizer = TokenizerJson(json.dumps(spec))
    chat = Chat(tokenizer, SWITCH, "<s>", "</s>", [tokenizer.special_tokens["</s>"]], thinks=True)
    assert chat.split_response(targets(chat, "<think>c</think>b")) == ("c", "b")
    assert targets(chat, "<think>c</think>b") == targets(make(SWITCH, thinks=True), "<think>c</think>b")


def test_a_block_is_taught_as_the_template_writes_it():
    empty = make(SWITCH, thinks=True).render_text("a", "b")
    assert empty.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nb<|im_end|>")
    assert make(SWITCH, thinks=True).prompt_ids("a") == make(CHATML).prompt_ids("a")
    for template in (SWITCH, NO_SWITCH):
        chat = make(template)
        assert chat.render_text("a", "b") == empty
        assert chat.tokenizer.decode(chat.prompt_ids("a")).endswith("assistant\n<think>\n\n</think>\n\n")
    for thinks in (False, True):
        text = make(OPENS, thinks).render_text("a", "<think>c</think>b")
        assert text.endswith(f"<|im_start|><think>\n{'c' * thinks}\n</think>\n\nb<|im_end|>")


def test_reasoning_that_does_not_end_is_no_answer():
    chat = make(OPENS, thinks=True)
    assert chat.response_text(chat.tokenizer.encode("An apple is")) == ""
    assert make(SWITCH, thinks=True).response_text(chat.tokenizer.encode("<think>\nAn apple is")) == ""
    assert split_reply("<think>a</think> <think>b</think>c") == ("a", "c")
    assert split_reply("<think>a</think><think>b") == ("a", "")
    assert split_reply("An apple is </think> a") == ("", "An apple is </think> a")


@pytest.mark.parametrize(
    ("template", "prompt"),
    [(NO_PROMPT, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"), (WORDS, "USER: a</s>ASSISTANT:")],
)
def test_a_template_without_a_generation_prompt_gets_one(template, prompt):
    chat = make(template)
    assert chat.render_text("a", "b").startswith(prompt)
    assert len(targets(chat, "b")) == 2 + (template == WORDS)  # the space in front stays with the answer
    assert chat.response_text(targets(chat, "b")) == "b"
    if template == NO_PROMPT:
        assert chat.prompt_ids("a") == make(CHATML).prompt_ids("a")


def test_an_exported_template_writes_the_same_prompts_without_settings(chat):
    plain = chat.exported_template()
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    for messages in (turns[:1], turns):
        text = render(plain, messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
        as_pairs = [(m["role"], m["content"]) for m in messages]
        assert ids_of(chat, text) == chat.message_ids(as_pairs)
    for thinks in (False, True):
        again = make(plain, thinks)
        if thinks == chat.thinks or not chat.has_thinking:
            assert again.exported_template() == plain
            assert targets(again, "a") == targets(chat, "a")
    if not chat.has_thinking and chat.template != NO_PROMPT and chat.template != WORDS:
        assert plain == chat.template


def ids_of(chat, text):
    """Ids of a rendered text, with its special tokens."""
    ids, preceded_by = [], "nothing"
    for part in re.split("(" + "|".join(map(re.escape, chat.tokenizer.special_tokens)) + ")", text):
        special = chat.tokenizer.special_tokens.get(part)
        ids += [special] if special is not None else chat.tokenizer.encode(part, preceded_by) if part else []
        preceded_by = "control"
    return ids


def test_a_template_that_changes_replies_is_refused():
    for change in ("m.content | upper", "m.content[:9]", "m.content + m.content"):
        with pytest.raises(ChatError, match="template"):
            check_chat(make(CHATML.replace("m['content']", f"({change})")), 1000)


# --- the files of a folder ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    lines = []
    monkeypatch.setattr(hf_tokenizer, "_say", lambda line: line and lines.append(line))

    def read(**files):
        files = {"tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>"}} | files
        for name, value in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
        return read_chat(epath.Path(tmp_path))

    read.lines, read.path = lines, tmp_path
    return read


NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def test_the_generation_tag_changes_nothing(folder):
    (folder.path / "chat_template.jinja").write_text(
        CHATML.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}")
    )
    assert folder().prompt_ids("Hi") == make(CHATML).prompt_ids("Hi")
    assert targets(folder(), "Yes") == targets(make(CHATML), "Yes")


def test_a_date_is_the_same_on_every_day(folder):
    dated = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
    (folder.path / "chat_template.jinja").write_text(dated)
    assert folder().render_text("a", "b").startswith("26 Jul 2024\n<|im_start|>user")
    (folder.path / "chat_template.jinja").write_text("{% if strftime_now is defined %}no{% endif %}" + CHATML)
    assert folder().render_text("a", "b").startswith("<|im_start|>user")


@pytest.mark.parametrize(
    "template",
    [
        [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}],
        [{"name": "tool_use", "template": "no"}, {"name": "chat", "template": CHATML}],
        [{"name": "other", "template": CHATML}],
        {"rag": "no", "default": CHATML},
        CHATML,
    ],
)
@pytest.mark.parametrize("name", ["tokenizer_config", "chat_template"])
def test_named_templates_are_read(folder, template, name):
    files = {"tokenizer_config": NAMES, name: {"chat_template": template}}
    files[name] |= NAMES if name == "tokenizer_config" else {}
    assert folder(**files).template == CHATML
    assert not folder.lines


def test_our_template_is_used_where_no_name_fits_and_a_line_says_so(folder):
    named = [{"name": "tool_use", "template": CHATML}, {"name": "rag", "template": CHATML}]
    assert folder(tokenizer_config=NAMES | {"chat_template": named}).template == builtin_template("plain")
    assert [("tool_use" in line, "'plain'" in line) for line in folder.lines] == [(True, True)]


def test_marks_that_are_no_tokens_are_named(folder):
    folder(tokenizer_config=NAMES | {"chat_template": CHATML.replace("im_start", "turn")})
    assert len(folder.lines) == 1
    assert "<|turn|>" in folder.lines[0]
    assert "im_end" not in folder.lines[0]


def test_added_tokens_and_the_map_of_special_tokens_are_read(folder):
    size = TokenizerJson(TOKENIZER).vocab_size
    template = CHATML.replace("im_start", "turn").replace("im_end", "stop")
    chat = folder(
        tokenizer_config={"chat_template": template},
        added_tokens={"<|turn|>": size, "<|stop|>": size + 1, "covfefe": size + 2},
        special_tokens_map={"bos_token": {"content": "<s>"}, "eos_token": "<|stop|>"},
    )
    assert (chat.bos, chat.eos, chat.stop_ids) == ("<s>", "<|stop|>", (size + 1,))
    assert chat.prompt_ids("a covfefe")[0] == size
    assert size + 2 in chat.prompt_ids("a covfefe")
    assert not {size, size + 1} & set(chat.tokenizer.encode("<|turn|><|stop|>"))  # a mark of the template is no word
    assert not folder.lines


@pytest.mark.parametrize("added", [{"<|turn|>": 3}, {"<|turn|>": "4"}, {"<|turn|>": -1}, {"": 900}, {"x": 10**12}])
def test_a_malformed_added_token_is_refused(folder, added):
    with pytest.raises(ModelFormatError) as error:
        folder(added_tokens=added)
    assert "\n" not in str(error.value)


def test_a_special_token_of_the_vocabulary_alone_is_one(folder):
    spec = json.loads(TOKENIZER)
    spec["model"]["vocab"]["<|end|>"] = 700
    (folder.path / "tokenizer.json").write_text(json.dumps(spec))
    chat = folder(tokenizer_config={"bos_token": "<s>", "eos_token": "<|end|>"})
    assert chat.stop_ids == (700,)


def test_unused_ids_beyond_the_embedding_are_tolerated(folder):
    spec = json.loads(TOKENIZER)
    size = TokenizerJson(TOKENIZER).vocab_size
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for i, (token, special) in enumerate((("<image>", True), ("word", False))):
        spec["added_tokens"].append({"id": size + i, "content": token, "special": special, **flags})
    (folder.path / "tokenizer.json").write_text(json.dumps(spec))
    chat = folder(config={"vocab_size": size})
    assert max(chat.tokenizer.encode("a word <image>")) < size
    with pytest.raises(ModelFormatError, match=rf"{size + 2} ids.* 300 rows"):  # the model's own pieces
        folder(config={"vocab_size": 300})
    with pytest.raises(ModelFormatError, match="embedding"):
        folder(config={"vocab_size": size}, tokenizer_config=NAMES | {"bos_token": "<image>", "chat_template": OPENS})


@pytest.mark.parametrize("name", ["control", "plain"])
def test_a_system_text_is_taught_as_a_turn_of_its_own(name):
    chat = make(builtin_template(name))
    example = chat.example("Be kind.\n\nHi\n\nyou", "Yes", "Be kind.")
    prompt = chat.message_ids([("system", "Be kind."), ("user", "Hi\n\nyou")])
    assert example.ids[: len(prompt)] == prompt
    assert example.target == [False] * len(prompt) + [True] * (len(example.ids) - len(prompt))
    assert chat.with_system("Be kind.\n\nHi", "") == [("user", "Be kind.\n\nHi")]
    assert chat.with_system("Hi", "Be kind.") == [("user", "Hi")]


def test_a_system_text_stands_above_the_prompt_where_the_template_has_no_such_role():
    chat = make(builtin_template("plain").replace('"system"', '"none"'))
    assert not chat.has_system_role
    assert chat.example("s\n\np", "r", "s") == chat.example("s\n\np", "r")


GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first }}"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)


@pytest.mark.parametrize("template", [GEMMA, builtin_template("plain")], ids=["gemma", "plain"])
def test_a_system_text_stands_before_the_first_user_text(template):
    chat = make(template)
    assert chat.has_system_role
    ids = chat.message_ids([("system", "Be kind."), ("user", "Hi"), ("assistant", "Yes"), ("user", "Why?")])
    text = chat.tokenizer.decode(ids)
    assert text.index("Be kind.") < text.index("Hi") < text.index("Yes") < text.index("Why?")
    assert ids.count(chat.tokenizer.special_tokens["<s>"]) == 1
    assert ids[0] == chat.tokenizer.special_tokens["<s>"]
    if template == GEMMA:
        assert text == "user\nBe kind.\n\nHi\nmodel\nYes\nuser\nWhy?\nmodel\n"
        with pytest.raises(ChatError, match="alternate"):
            chat.message_ids([("user", "a"), ("user", "b")])
