"""EleutherAI's lm-evaluation-harness over our models.

    lm_eval.simple_evaluate(model=HarnessLM("runs/a", name="m3"), tasks=["arc_easy"])

lm_eval is no part of this project's requirements; only this file imports it. What it scores, and on which ids, is what
its own "hf" backend does with the exported folder, so that figures can be compared.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import tokenizers
from etils import epath
from tqdm import tqdm

from selfreward_jax.llm import hub
from selfreward_jax.llm.chat import Chat, render
from selfreward_jax.llm.hf_config import read_json_object
from selfreward_jax.llm.llama import Llama, LlamaConfig, Params
from selfreward_jax.parallel.sharding import batch_divisor, batch_sharding, round_up
from selfreward_jax.runs.loading import load_model
from selfreward_jax.sampling.engine import Engine, Request, SamplingParams
from selfreward_jax.train.logprobs import token_logprobs_and_greedy

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
except ImportError as error:
    raise ImportError(
        f"selfreward_jax.integrations.lm_eval needs lm-evaluation-harness ({error}): pip install lm_eval"
    ) from error

Scored = tuple[tuple[str, str] | None, list[int], list[int]]  # texts (a key for lm_eval's cache), context, continuation

_SAMPLING = {"until", "do_sample", "temperature", "top_p", "max_gen_toks"}
_IDLE = {"num_beams": 1, "repetition_penalty": 1.0, "top_k": 0}  # these change nothing


@partial(jax.jit, static_argnames="cfg")
def score(cfg: LlamaConfig, params: Params, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`token_logprobs_and_greedy` as one program."""
    return token_logprobs_and_greedy(Llama(cfg), params, tokens_BT)


class IdsEngine(Engine):
    """An engine whose prompts are ids already."""

    def ids(self, prompt: Any) -> list[int]:
        """The prompt itself."""
        return list(prompt)


class HarnessLM(TemplateLM):
    """A model of ours as lm_eval sees it.

    Args:
      path, name: the model, as in `saved.open_model`.
      batch_size: texts scored, or answers drawn, together.
      max_length: most tokens the model is given; its own length if 0.
      add_bos_token: whether a text begins with the id that begins texts; as the folder's tokenizer does if None.
      seed: for sampled answers.

    Raises:
      ConfigError, HubError: as `saved.open_model`.
    """

    BUCKET = 32  # lengths are rounded up to a multiple of this, to compile few programs

    def __init__(
        self,
        path: str,
        name: str = "",
        *,
        batch_size: int = 16,
        max_length: int = 0,
        add_bos_token: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = load_model(path, name)
        self.chat, self.seed = self.model.chat, seed
        self.max_length = min(max_length or self.model.max_length, self.model.max_length)
        self.max_gen_toks = min(256, self.max_length // 2)  # of tasks that do not say
        self.batch_size = round_up(int(batch_size), batch_divisor(self.model.mesh))
        self._source = f"{path}/{self.model.name}"
        folder = hub.resolve_model_dir(path) if path.startswith(hub.HUB_PREFIX) else epath.Path(path)
        folder = self.model.run.workdir / "tokenizer" if self.model.run else folder
        self.add_bos_token = begins_texts(folder, self.chat) if add_bos_token is None else add_bos_token
        pieces = sorted(self.chat.tokenizer.special_tokens, key=len, reverse=True)
        self._controls = re.compile(f"({'|'.join(map(re.escape, pieces)) or '(?!)'})")
        saved, limits = self.model, {"rows": self.batch_size, "max_length": self.max_length}
        self._engine = IdsEngine(saved.cfg, saved.params, saved.chat, saved.mesh, **limits)

    # --- texts to ids ---

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.chat.tokenizer.special_tokens[self.chat.eos] if self.chat.eos else self.chat.stop_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The id that stands before a text that has nothing before it."""
        return self.chat.tokenizer.special_tokens[self.chat.bos] if self.chat.bos else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text. Control pieces in it become control ids: lm_eval hands over a chat template's text so."""
        bos = self.chat.bos
        if add_special_tokens is None:
            add_special_tokens = self.add_bos_token and not (bos and string.startswith(bos))
        ids = [self.prefix_token_id] if bos and add_special_tokens else []
        preceded_by = "nothing"
        for i, part in enumerate(self._controls.split(string)):
            if i % 2:
                ids.append(self.chat.tokenizer.special_tokens[part])
                preceded_by = "control"
            elif part:
                ids += self.chat.tokenizer.encode(part, preceded_by)
        return ids

    @property
    def tokenizer_name(self) -> str:
        """What names the tokenizer in lm_eval's caches of requests."""
        return self._source.replace("/", "__")

    def apply_chat_template(self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the chat template writes it. Without `add_generation_prompt` the last message goes on."""
        named = {"bos_token": self.chat.bos or "", "eos_token": self.chat.eos or ""}
        text = render(self.chat.template, messages=chat_history, add_generation_prompt=add_generation_prompt, **named)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template; None where lm_eval wants none."""
        return self.chat.template if chat_template else None

    # --- log-likelihoods ---

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        texts = [(context + continuation)[-(self.max_length + 1) :] for _, context, continuation in requests]
        for (key, _, continuation), text in zip(requests, texts, strict=True):
            if not 0 < len(continuation) < len(text):
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens cannot be scored by a model of length "
                    f"{self.max_length}: {key}"
                )
        answers: list[Any] = [None] * len(requests)
        longest_first = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        progress = tqdm(total=len(texts), desc="log-likelihoods", disable=disable_tqdm)
        for start in range(0, len(texts), self.batch_size):
            chosen = longest_first[start : start + self.batch_size]
            # The last token is only a target: it needs no place of its own in the model.
            tokens = np.zeros((self.batch_size, round_up(len(texts[chosen[0]]) - 1, self.BUCKET) + 1), np.int32)
            for row, i in enumerate(chosen):
                tokens[row, : len(texts[i])] = texts[i]
            placed = jax.device_put(tokens, batch_sharding(self.model.mesh, 2))
            logprobs, likeliest = jax.device_get(score(self.model.cfg, self.model.params, placed))
            for row, i in enumerate(chosen):
                key, _, continuation = requests[i]
                scored = slice(len(texts[i]) - len(continuation), len(texts[i]))
                answers[i] = float(logprobs[row, scored].sum(dtype=np.float64)), bool(likeliest[row, scored].all())
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, answers[i])
            progress.update(len(chosen))
        progress.close()
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows that do not overlap but for one token of context."""
        windows = [
            utils.get_rolling_token_windows(self.tok_encode(r.args[0]), self.prefix_token_id, self.max_length, 1)
            for r in requests
        ]
        texts = [[(None, *utils.make_disjoint_window(w)) for w in text] for text in windows]
        scored = iter(self._loglikelihood_tokens([w for text in texts for w in text], disable_tqdm))
        totals = [sum(next(scored)[0] for _ in text) for text in texts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # --- answers ---

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues each text; what comes after a stop string is cut off."""
        settings = [normalize_gen_kwargs(r.args[1], self.max_gen_toks) for r in requests]
        alike: dict[SamplingParams, list[int]] = {}
        for i, given in enumerate(settings):
            alike.setdefault(self._sampling(given), []).append(i)
        answers = [""] * len(requests)
        progress = tqdm(total=len(requests), desc="answers", disable=disable_tqdm)
        for how, members in alike.items():
            room = self.max_length - how.max_new_tokens
            prompts = [self.tok_encode(requests[i].args[0])[-room:] or [self.prefix_token_id] for i in members]
            asked = [Request(str(i), prompt) for i, prompt in zip(members, prompts, strict=True)]
            for batch in self._engine.stream(asked, how, jax.random.key(self.seed)):
                for c in batch:
                    text = self.chat.tokenizer.decode([t for t in c.ids if t not in self.chat.stop_ids])
                    answers[int(c.id)] = postprocess_generated_text(text, settings[int(c.id)]["until"], None)
                    self.cache_hook.add_partial("generate_until", requests[int(c.id)].args, answers[int(c.id)])
                progress.update(len(batch))
        progress.close()
        return answers

    def _sampling(self, given: dict[str, Any]) -> SamplingParams:
        temperature = float(given.get("temperature", 0.0)) if given["do_sample"] else 0.0
        idle = _IDLE | ({"top_k": given.get("top_k")} if not temperature else {})
        unknown = {k: v for k, v in given.items() if k not in _SAMPLING and v not in (None, idle.get(k))}
        if unknown:
            raise ValueError(f"the task's generation settings {unknown} are not known here: {sorted(_SAMPLING)} are")
        if given["max_gen_toks"] >= self.max_length:
            raise ValueError(
                f"the task asks for {given['max_gen_toks']} new tokens, but the model holds {self.max_length} in all: "
                "give gen_kwargs a smaller max_gen_toks"
            )
        return SamplingParams(1, temperature, float(given.get("top_p", 1.0)), given["max_gen_toks"])


def begins_texts(folder: epath.Path, chat: Chat) -> bool:
    """Whether a folder's tokenizer puts the id that begins a text in front of every text, as transformers reads it."""
    if not chat.bos:
        return False
    if (path := folder / "tokenizer.json").exists():  # what it says counts, not tokenizer_config.json
        return tokenizers.Tokenizer.from_str(path.read_text()).encode("a").ids[:1] == [
            chat.tokenizer.special_tokens[chat.bos]
        ]
    settings = folder / "tokenizer_config.json"  # of a SentencePiece model: our documents begin so, as Llama's do
    return bool((read_json_object(settings) if settings.exists() else {}).get("add_bos_token", True))
