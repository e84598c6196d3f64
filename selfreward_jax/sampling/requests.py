"""What a caller asks of a model, checked: prompts and conversations, sampling parameters, seeds.

A fault is a ConfigError with one line: the argument, its value, the remedy.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import jax
import numpy as np

from selfreward_jax.config import ConfigError
from selfreward_jax.config.errors import brief
from selfreward_jax.llm.chat import Chat
from selfreward_jax.sampling.engine import Engine, SamplingParams

Message = Mapping[str, str]  # {"role": "system", "user" or "assistant", "content": text}
Prompt = str | Sequence[Message]  # a user message, or a conversation that ends with one
EnginePrompt = str | tuple[tuple[str, str], ...]  # the same as the engine takes it


def to_engine_prompt(prompt: Any, label: str, chat: Chat, raw: bool = False) -> EnginePrompt:
    """A prompt as the engine takes it. A conversation of one user message becomes that message.

    Args:
      prompt: a string, or a list of messages {"role": ..., "content": ...}.
      label: its name in an error.
      chat: the model's chat format.
      raw: the prompt is plain text to be continued. It may be empty.

    Raises:
      ConfigError: the text is empty, or the messages are not a conversation that ends with a user's message.
    """
    if isinstance(prompt, str):
        check_text(label, prompt, may_be_empty=raw)
        return prompt
    if raw:
        raise ConfigError(f"{label} is {brief(prompt)}; with raw it must be a text: leave raw out for messages")
    if isinstance(prompt, Mapping) or not isinstance(prompt, Sequence) or not prompt:
        raise ConfigError(
            f'{label} is {brief(prompt)}; it must be a text or a list of messages: [{{"role": "user", "content": ...}}]'
        )
    messages = tuple(_to_message(message, f"{label}[{i}]") for i, message in enumerate(prompt))
    _check_roles([role for role, _ in messages], label, chat)
    for i, (role, text) in enumerate(messages):
        check_text(f"{label}[{i}]['content']", text, may_be_empty=role != "user")
    return messages[0][1] if len(messages) == 1 else messages


def _to_message(message: Any, label: str) -> tuple[str, str]:
    if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
        raise ConfigError(
            f'{label} is {brief(message)}; it must be {{"role": ..., "content": ...}}, both of them texts'
        )
    return message["role"], message["content"]


def _check_roles(roles: Sequence[str], label: str, chat: Chat) -> None:
    turns = list(roles)
    if turns[0] == "system":
        if not chat.has_system_role:
            raise ConfigError(
                f"{label}[0] has the role 'system', which the model's chat template does not have: put its text into "
                "the first user message"
            )
        turns = turns[1:]
    first = len(roles) - len(turns)
    for i, role in enumerate(turns):
        expected = "assistant" if i % 2 else "user"
        if role != expected:
            raise ConfigError(
                f"{label}[{first + i}] has the role {role!r}; it must be {expected!r}: user and assistant take turns, "
                "after a system message if there is one"
            )
    if len(turns) % 2 == 0:
        last = f"{label}[{len(roles) - 1}] is the last message and has the role {roles[-1]!r}"
        raise ConfigError(f"{last}; the last one must be 'user': add the message that the model shall answer")


def check_length(engine: Engine, label: str, prompt: EnginePrompt, max_new_tokens: int) -> None:
    """Raises ConfigError where a prompt leaves no room for `max_new_tokens` tokens."""
    length = len(engine.encode(prompt))
    if length + max_new_tokens > engine.max_length:
        raise ConfigError(
            f"{label}: {length} tokens and max_new_tokens {max_new_tokens} exceed the {engine.max_length} that the "
            "model takes: shorten the text, or lower max_new_tokens"
        )


def make_sampling_params(num_samples: int, temperature: float, top_p: float, max_new_tokens: int) -> SamplingParams:
    """Sampling parameters.

    Raises:
      ConfigError: one of them is out of range.
    """
    check_count("num_samples", num_samples, 1)
    check_count("max_new_tokens", max_new_tokens, 1)
    if not isinstance(temperature, Real) or not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature is {temperature!r}; it must be at least 0 and finite: 0 decodes greedily")
    if not isinstance(top_p, Real) or not 0 < top_p <= 1:
        raise ConfigError(f"top_p is {top_p!r}; it must be above 0 and at most 1: 1 samples from all tokens")
    return SamplingParams(int(num_samples), float(temperature), float(top_p), int(max_new_tokens))


def make_key(seed: int) -> jax.Array:
    """The random key of a seed.

    Raises:
      ConfigError: the seed is no whole number from 0 to 2^32 - 1.
    """
    check_count("seed", seed, 0)
    if seed >= 1 << 32:
        raise ConfigError(f"seed is {seed}; it must be below {1 << 32}: choose a smaller one")
    return jax.random.key(int(seed))


def check_count(name: str, value: Any, minimum: int) -> None:
    """Raises ConfigError where a value is no whole number, or below the minimum."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number, at least {minimum}")


def check_text(name: str, value: Any, may_be_empty: bool = False) -> None:
    """Raises ConfigError where a value is not a text, or is empty."""
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {brief(value)}; it must be a text")
    if not may_be_empty and not value.strip():
        raise ConfigError(f"{name} is {value!r}: give a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name} has the character {value[error.start]!r} at {error.start}, half of a surrogate pair: remove it"
        ) from None


def check_list(name: str, values: Any) -> None:
    """Raises ConfigError where values are not a list. A string would be a list of letters."""
    if isinstance(values, str | Mapping):
        raise ConfigError(f"{name} is {brief(values)}; it must be a list: write [{brief(values)}] for a single one")
    if not isinstance(values, Sequence):
        raise ConfigError(f"{name} is {brief(values)}; it must be a list: write list({name})")


def check_pairs(prompts: Any, responses: Any, or_ids: bool = False) -> list[str]:
    """Checks a list of prompts and one of their responses. Returns the names of the prompts in errors.

    Args:
      prompts, responses: the lists.
      or_ids: a response may also be a list of token ids.

    Raises:
      ConfigError: these are not lists of texts of equal length, or a prompt is empty.
    """
    for name, values in (("prompts", prompts), ("responses", responses)):
        check_list(name, values)
        for i, value in enumerate(values):
            if not (or_ids and name == "responses" and _are_ids(value)):
                check_text(f"{name}[{i}]", value, may_be_empty=name == "responses")
    if len(prompts) != len(responses):
        raise ConfigError(f"{len(prompts)} prompts and {len(responses)} responses: give one response for each prompt")
    return [f"prompts[{i}]" for i in range(len(prompts))]


def check_ids(ids: Any, vocab_size: int, max_length: int) -> np.ndarray:
    """Token ids as int32 [B, T].

    Raises:
      ConfigError: they are not integers [B, T], outside the vocabulary, or T is above `max_length`.
    """
    try:
        ids_BT = np.asarray(ids)
    except ValueError:
        raise ConfigError("ids have rows of different lengths: pad the shorter ones on the right") from None
    if ids_BT.ndim != 2 or not ids_BT.size or not np.issubdtype(ids_BT.dtype, np.integer):
        raise ConfigError(
            f"ids have the shape {ids_BT.shape} and the type {ids_BT.dtype}; they must be integers [B, T]: for one "
            "text give [ids]"
        )
    if ids_BT.min() < 0 or ids_BT.max() >= vocab_size:
        raise ConfigError(
            f"ids are from {ids_BT.min()} to {ids_BT.max()}; the vocabulary has 0 to {vocab_size - 1}: use the ids of "
            "this model's tokenizer"
        )
    if ids_BT.shape[1] > max_length:
        raise ConfigError(f"ids have {ids_BT.shape[1]} tokens a row, the model takes {max_length}: give fewer")
    return ids_BT.astype(np.int32)


def _are_ids(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and len(value) > 0 and all(isinstance(i, Integral) for i in value)
