"""The Python API: `run` trains, `load` gives a model to chat, generate, judge and score with.

    import selfreward_jax as sr

    summary = sr.run("iter2:micro", "runs/a")
    model = sr.load("runs/a", "m2")
    model.chat("Name three instruments.")

docs/api.md shows every function. Bad input raises an `InputError` with one line: the argument, its value, the remedy.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from selfreward_jax import loop, storage
from selfreward_jax.config import ConfigError, default_config, files
from selfreward_jax.config.overrides import override, with_default_types
from selfreward_jax.config.paths import expand_home, expand_settings
from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.hf_config import DTYPES, stored_dtype
from selfreward_jax.method import judge as judging
from selfreward_jax.method import templates
from selfreward_jax.report import export
from selfreward_jax.runs.loading import LoadedModel, load_model
from selfreward_jax.sampling import requests
from selfreward_jax.sampling.engine import Completion, Engine, Request, SamplingParams
from selfreward_jax.sampling.requests import EnginePrompt, Prompt
from selfreward_jax.stages.sampling import sampling_params
from selfreward_jax.telemetry import compile_cache
from selfreward_jax.train.logprobs import example_logprobs, token_logits


class Sample(NamedTuple):
    """One sampled completion.

    text: without the tokens that end it.
    ids: the sampled token ids; the last one ends the text if it is finished.
    logprobs: log-probs of the ids under the model itself (temperature 1, no top-p).
    finished: False if it was cut off at max_new_tokens.
    """

    text: str
    ids: list[int]
    logprobs: list[float]
    finished: bool

    def __repr__(self) -> str:
        return f"Sample(text={self.text!r}, ids=[{len(self.ids)} ids], finished={self.finished})"


class Judgment(NamedTuple):
    """What a model thinks of a response.

    score: the mean of the votes; None if there is none.
    votes: the score of each sampled judgment; None where it names none, or was cut off.
    texts: the judgments.
    """

    score: float | None
    votes: list[float | None]
    texts: list[str]


def run(
    config: ConfigDict | str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    *,
    allow_config_changes: bool = False,
) -> dict[str, Any]:
    """Trains and evaluates the models of a run: `selfreward-jax run`.

    What the working directory holds already is used. After an interruption the same call resumes.

    Args:
      config: a name or path with an optional preset ("iter2:micro", "my_config.py"), or the settings themselves, which
        stay as they are.
      workdir: the working directory: a folder or gs://BUCKET/FOLDER.
      overrides: settings to change, by dotted names: {"dpo.beta": 0.2}.
      allow_config_changes: resume with changed settings, where no artifact depends on them.

    Returns:
      The content of WORKDIR/summary.json.

    Raises:
      ConfigError, DataError, ModelFormatError, TemplateError: the input is not usable.
      StageError: a stage cannot continue.
      StorageError: the working directory cannot be used.
    """
    if not isinstance(config, ConfigDict | str | os.PathLike):
        raise ConfigError(f"config is {config!r}; it must be a name, a path or a ConfigDict: for example 'iter2:micro'")
    cfg = with_default_types(config, "config") if isinstance(config, ConfigDict) else files.load(os.fspath(config))
    cfg = expand_settings(override(cfg, overrides or {}))
    _keep_compiled_programs()
    workdir = expand_home(os.fspath(workdir), "workdir")
    loop.run(cfg, workdir, allow_config_changes=allow_config_changes)
    return storage.read_json(epath.Path(workdir) / "summary.json")


def load(path: str | os.PathLike[str], model: str = "", *, max_concurrent: int = 32) -> "Model":
    """Loads a model.

    Args:
      path: a working directory, a Hugging Face folder, or OWNER/NAME@REVISION on the Hugging Face hub, with or without
        "hub:" in front.
      model: which model of a working directory, such as "m3"; the last one if not given.
      max_concurrent: samples decoded at once. Lower it if the device's memory is too small.

    Raises:
      ConfigError: there is no such model.
      ModelFormatError: the folder cannot be used, or not be downloaded.
    """
    requests.check_count("max_concurrent", max_concurrent, 1)
    _keep_compiled_programs()
    return Model(load_model(expand_home(os.fspath(path), "path"), model), max_concurrent)


def _keep_compiled_programs() -> None:
    # Elsewhere the user has decided, in Python; a variable is respected there.
    if jax.config.jax_compilation_cache_dir in (None, os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        compile_cache.enable()


class Model:
    """A model of a run, of a folder or of the hub. `load` makes it.

    What is sampled depends on the seed and the prompt (and the sample's index) alone, not on the other prompts of a
    call. Prompts longer than the model allows are refused, not truncated.

    Attributes:
      loaded: parameters (`loaded.params`), configuration (`loaded.cfg`), chat format and meshes.
      name: "m3", or the name of the folder.
      max_length: the limit for the tokens of prompt and completion together.
    """

    def __init__(self, loaded: LoadedModel, max_concurrent: int = 32) -> None:
        self.loaded, self.name, self.max_length = loaded, loaded.name, loaded.max_length
        self._max_concurrent = max_concurrent

    def __repr__(self) -> str:
        place = self.loaded.run.workdir if self.loaded.run else "a Hugging Face folder"
        size = sum(x.size for x in jax.tree.leaves(self.loaded.params))
        return f"<Model {self.name} of {place}: {size:,} parameters, up to {self.max_length} tokens>"

    @cached_property
    def _engine(self) -> Engine:
        return self.loaded.engine(self._max_concurrent, self.max_length)

    @cached_property
    def _raw_engine(self) -> Engine:
        return self._engine.as_raw()  # the same weights, once in memory

    def encode(self, prompt: Prompt, raw: bool = False) -> list[int]:
        """Token ids of a prompt, as `generate` gives them to the model: up to where the response begins.

        Args:
          prompt: a user message or a conversation.
          raw: the prompt is plain text to be continued.

        Raises:
          ConfigError: as `generate`.
        """
        return (self._raw_engine if raw else self._engine).encode(
            requests.to_engine_prompt(prompt, "prompt", self.loaded.chat, raw)
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated token ids, without special tokens."""
        return self.loaded.chat.response_text([int(i) for i in ids])

    def chat(
        self,
        messages: Prompt,
        *,
        temperature: float = 0.7,
        top_p: float = 0.9,
        max_new_tokens: int = 128,
        seed: int = 0,
    ) -> str:
        """The model's answer to a conversation.

        Args:
          messages: [{"role": "user", "content": ...}, ...]; or one user message as a string. An optional system message
            comes first, then user and assistant take turns, and the user has the last word.
          temperature: 0 is greedy.
          top_p: probability mass of nucleus sampling.
          max_new_tokens: an answer is cut off there.
          seed: another seed gives another answer, unless temperature is 0.

        Raises:
          ConfigError: the messages are not such a conversation, are too long, or an option is out of range.
          ChatError: the model's chat template does not render the conversation.
        """
        params = requests.make_sampling_params(1, temperature, top_p, max_new_tokens)
        prompt = requests.to_engine_prompt(messages, "messages", self.loaded.chat)
        return self._sample([("messages", prompt)], params, seed, self._engine)[prompt][0].text

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int = 1,
        temperature: float = 0.7,
        top_p: float = 0.9,
        max_new_tokens: int = 128,
        seed: int = 0,
        raw: bool = False,
    ) -> list[list[Sample]]:
        """Samples completions of many prompts, in batches.

        Args:
          prompts: user messages, or conversations as in `chat`. Equal prompts get equal samples.
          num_samples: completions of each prompt.
          temperature: 0 is greedy.
          top_p: probability mass of nucleus sampling.
          max_new_tokens: a completion is cut off there.
          seed: of the random numbers.
          raw: the prompts are plain text to be continued, without the chat format.

        Returns:
          For each prompt its samples.

        Raises:
          ConfigError: a prompt is empty, too long or not a conversation, or an option is out of range.
          ChatError: the model's chat template does not render a conversation.
        """
        params = requests.make_sampling_params(num_samples, temperature, top_p, max_new_tokens)
        requests.check_list("prompts", prompts)
        labels = [f"prompts[{i}]" for i in range(len(prompts))]
        checked = [
            requests.to_engine_prompt(p, label, self.loaded.chat, raw) for p, label in zip(prompts, labels, strict=True)
        ]
        engine = self._raw_engine if raw else self._engine
        samples = self._sample(list(zip(labels, checked, strict=True)), params, seed, engine)
        return [[Sample(c.text, c.ids, c.logprobs, c.finished) for c in samples[prompt]] for prompt in checked]

    def judge(
        self,
        prompt: str,
        response: str,
        *,
        votes: int | None = None,
        template: str = "",
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> Judgment:
        """The model as judge of a response, with the settings of its run (config.judge); without a run the defaults.

        Args:
          prompt: the user message.
          response: the answer to it.
          votes: judgments to sample; by default as many as in the run.
          template: another judge template: its name, or the path of a file with {prompt} and {response}.
          max_new_tokens: a judgment that is cut off there is no vote; by default as in the run.
          seed: of the random numbers.

        Raises:
          ConfigError: the prompt is empty, or all is too long; or there are fewer votes than a score needs.
          TemplateError: there is no such template.
        """
        requests.check_text("prompt", prompt)
        requests.check_text("response", response, may_be_empty=True)
        return self._judge(["prompt"], [(prompt, response)], votes, template, max_new_tokens, seed)[0]

    def judge_batch(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        *,
        votes: int | None = None,
        template: str = "",
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> list[Judgment]:
        """`judge` of many responses: the same judgments, and faster. It raises the same errors."""
        labels = requests.check_pairs(prompts, responses)
        pairs = list(zip(prompts, responses, strict=True))
        return self._judge(labels, pairs, votes, template, max_new_tokens, seed)

    def _judge(
        self,
        labels: Sequence[str],
        pairs: Sequence[tuple[str, str]],
        votes: int | None,
        template: str,
        max_new_tokens: int | None,
        seed: int,
    ) -> list[Judgment]:
        settings = (self.loaded.run.cfg if self.loaded.run else default_config()).judge
        params = sampling_params(settings)
        params = params._replace(
            num_samples=params.num_samples if votes is None else votes,
            max_new_tokens=params.max_new_tokens if max_new_tokens is None else max_new_tokens,
        )
        requests.check_count("votes", params.num_samples, settings.min_votes)
        requests.check_count("max_new_tokens", params.max_new_tokens, 1)
        text = templates.load(template or settings.template, {"prompt", "response"})
        for label, (prompt, response) in zip(labels, pairs, strict=True):
            as_prompt = judging.judge_prompt(text, prompt, response)
            label = f"{label} with its response and the judge template"
            requests.check_length(self._engine, label, as_prompt, params.max_new_tokens)
        rows = judging.judge_texts(self._engine, pairs, text, params, settings, requests.make_key(seed))
        field = "expected" if settings.aggregation == "expected" else "score"
        return [Judgment(r["score"], [v[field] for v in r["votes"]], [v["text"] for v in r["votes"]]) for r in rows]

    def logprobs(self, prompts: Sequence[str], responses: Sequence[str | Sequence[int]]) -> np.ndarray:
        """Sum of the log-probs (nats) of each response's tokens given its prompt, as the DPO loss computes it.

        Args:
          prompts: user messages.
          responses: the answer to each prompt: a text, to which the token that ends it is added; or token ids, as they
            are. A text can have several tokenizations, of which sampling may choose another: for the log-prob of a
            sample give its ids.

        Returns:
          float32 [responses].

        Raises:
          ConfigError: a prompt is empty, both together are too long, or the lists have different lengths.
        """
        labels = requests.check_pairs(prompts, responses, or_ids=True)
        examples = [self._to_example(p, r) for p, r in zip(prompts, responses, strict=True)]
        for label, example in zip(labels, examples, strict=True):
            if len(example.ids) > self.max_length:
                raise ConfigError(
                    f"{label} and its response have {len(example.ids)} tokens, the model takes {self.max_length}: "
                    "shorten them"
                )
        return example_logprobs(self.loaded.cfg, self.loaded.params, examples, self.loaded.mesh)

    def logits(self, ids: Any) -> np.ndarray:
        """Logits of the next token at each position.

        Args:
          ids: token ids, int [B, T], from the first token on. Rows have equal lengths: pad on the right, and ignore the
            logits there.

        Returns:
          float32 [B, T, V]. Of long texts this is large: `logprobs` never holds it.

        Raises:
          ConfigError: ids are not integers [B, T], outside the vocabulary, or T is larger than the model allows.
        """
        tokens_BT = requests.check_ids(ids, self.loaded.cfg.vocab_size, self.max_length)
        return token_logits(self.loaded.cfg, self.loaded.params, tokens_BT, self.loaded.mesh)

    def export(self, out: str | os.PathLike[str], *, dtype: str = "", shard_gb: float = 5.0) -> None:
        """Writes the model as a Hugging Face folder: `selfreward-jax export`.

        Args:
          out: the folder. It must not exist.
          dtype: of the weights: float32, bfloat16 or float16; by default that of the initial model.
          shard_gb: maximum gigabytes per weight file.

        Raises:
          ConfigError: the folder exists, there is no such dtype, or the model comes from a Hugging Face folder.
        """
        folder, shard_bytes = epath.Path(expand_home(os.fspath(out), "out")), shard_gb * 1e9
        if self.loaded.run is None:
            raise ConfigError(f"{self.name} is no model of a run but a Hugging Face folder already: copy that folder")
        if folder.exists():
            raise ConfigError(f"out {folder} exists already: give another name, or move it away")
        if dtype not in ("", *DTYPES):
            raise ConfigError(f"dtype is {dtype!r}; it must be {', '.join(DTYPES)}: choose one of them")
        dtype = dtype or stored_dtype(self.loaded.hf_config or {})
        export.write_hf_folder(self.loaded, folder, dtype, shard_bytes)

    def _to_example(self, prompt: str, response: str | Sequence[int]) -> Example:
        if isinstance(response, str):
            return self.loaded.chat.example(prompt, response)
        requests.check_ids([response], self.loaded.cfg.vocab_size, self.max_length)
        prompt_ids = self.loaded.chat.prompt_ids(prompt)
        return Example([*prompt_ids, *response], [False] * len(prompt_ids) + [True] * len(response))

    def _sample(
        self, labeled: Sequence[tuple[str, EnginePrompt]], params: SamplingParams, seed: int, engine: Engine
    ) -> dict[EnginePrompt, list[Completion]]:
        """Completions by prompt. The prompt itself is the request's id, so it alone decides the random numbers."""
        for label, prompt in labeled:
            requests.check_length(engine, label, prompt, params.max_new_tokens)
        by_id = {prompt if isinstance(prompt, str) else repr(prompt): prompt for _, prompt in labeled}
        samples: dict[EnginePrompt, list[Completion]] = {prompt: [] for prompt in by_id.values()}
        for c in engine.generate([Request(*item) for item in by_id.items()], params, requests.make_key(seed)):
            samples[by_id[c.id]].append(c)
        return samples
