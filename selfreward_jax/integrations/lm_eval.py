"""An adapter that runs EleutherAI's lm-evaluation-harness (lm_eval) on the models of this project.

    lm_eval.simple_evaluate(model=HarnessLM("runs/a", name="m3"), tasks=["arc_easy"])

lm_eval is an optional dependency; only this file imports it. The scores, and the token ids that they are computed on,
are those of lm_eval's own "hf" backend on the exported folder, so that results are comparable.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from selfreward_jax import foreign
from selfreward_jax.llm import hub
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.hf_config import read_json_object
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params
from selfreward_jax.llm.tokenizer import TokenizerJson
from selfreward_jax.parallel.sharding import batch_divisor, batch_sharding, round_up
from selfreward_jax.runs.loading import load_model
from selfreward_jax.sampling.engine import Engine, Request, SamplingParams
from selfreward_jax.sampling.sampler import sampling_config
from selfreward_jax.train.logprobs import token_logprobs_and_greedy

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
except ImportError as error:
    raise ImportError(
        f"selfreward_jax.integrations.lm_eval needs lm-evaluation-harness ({error}): pip install 'selfreward-jax[eval]'"
    ) from error

ScoreRequest = tuple[tuple[str, str] | None, list[int], list[int]]  # key of lm_eval's cache, context, continuation

_SUPPORTED_SETTINGS = {"until", "do_sample", "temperature", "top_p", "max_gen_toks"}
_NO_OP_SETTINGS = {"num_beams": 1, "repetition_penalty": 1.0, "top_k": 0}  # with these values they change nothing


@partial(jax.jit, static_argnames="cfg")
def score_tokens(cfg: DecoderConfig, params: Params, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`token_logprobs_and_greedy` as one jitted program."""
    return token_logprobs_and_greedy(Decoder(cfg), params, tokens_BT)


class TokenIdEngine(Engine):
    """An engine whose prompts are already token ids."""

    def encode(self, prompt: Any) -> list[int]:
        """The prompt itself."""
        return list(prompt)


class HarnessLM(TemplateLM):
    """A model of this project behind lm_eval's interface.

    Args:
      path, name: the model, as in `load_model`.
      batch_size: texts scored, or responses sampled, at once.
      max_length: maximum number of tokens that the model is given; its own maximum if 0.
      add_bos_token: whether a text begins with the BOS token; as the folder's tokenizer does if None.
      seed: for sampled responses.

    Raises:
      ConfigError, ModelFormatError: as `load_model`.
    """

    BUCKET = 32  # lengths are rounded up to a multiple of this, so that few programs are compiled

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
        self.max_gen_toks = min(256, self.max_length // 2)  # for tasks that set no limit
        self.batch_size = round_up(int(batch_size), batch_divisor(self.model.mesh))
        self._source = f"{path}/{self.model.name}"
        folder = hub.resolve_model_dir(path) if path.startswith(hub.HUB_PREFIX) else epath.Path(path)
        folder = self.model.run.workdir / "tokenizer" if self.model.run else folder
        self.add_bos_token = adds_bos(folder, self.chat) if add_bos_token is None else add_bos_token
        tokens = sorted(self.chat.tokenizer.special_tokens, key=len, reverse=True)
        self._special_tokens = re.compile(f"({'|'.join(map(re.escape, tokens)) or '(?!)'})")
        self._engine = TokenIdEngine(
            sampling_config(self.model.cfg, self.model.mesh.devices.flat[0].platform),
            self.model.params,
            self.chat,
            self.model.mesh,
            max_concurrent=self.batch_size,
            max_length=self.max_length,
        )

    # --- texts to ids ---

    @property
    def eot_token_id(self) -> int:
        """The id of the token that ends a text (EOS)."""
        return self.chat.tokenizer.special_tokens[self.chat.eos] if self.chat.eos else self.chat.stop_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without context: BOS, or EOS where there is no BOS."""
        return self.chat.tokenizer.special_tokens[self.chat.bos] if self.chat.bos else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text. Special tokens in it become their own ids, since lm_eval passes rendered chat templates
        as text."""
        bos = self.chat.bos
        if add_special_tokens is None:
            add_special_tokens = self.add_bos_token and not (bos and string.startswith(bos))
        ids = [self.prefix_token_id] if bos and add_special_tokens else []
        preceded_by = "nothing"
        for i, part in enumerate(self._special_tokens.split(string)):
            if i % 2:
                ids.append(self.chat.tokenizer.special_tokens[part])
                preceded_by = "control"
            elif part:
                ids += self.chat.tokenizer.encode(part, preceded_by)
        return ids

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in lm_eval's caches of requests."""
        return self._source.replace("/", "__")

    def apply_chat_template(self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation, rendered by the chat template. Without `add_generation_prompt` the text ends inside the last
        message, which the model continues."""
        messages = [(message["role"], message["content"]) for message in chat_history]
        if add_generation_prompt:
            return self.chat.prompt_text(messages)
        text = self.chat.render(messages, add_generation_prompt=False)
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template; None where lm_eval asks for none."""
        return self.chat.template if chat_template else None

    # --- log-likelihoods ---

    def _loglikelihood_tokens(
        self, requests: Sequence[ScoreRequest], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """For each request the log-likelihood of the continuation, and whether it is the greedy one."""
        texts = [(context + continuation)[-(self.max_length + 1) :] for _, context, continuation in requests]
        for (key, _, continuation), text in zip(requests, texts, strict=True):
            if not 0 < len(continuation) < len(text):
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens cannot be scored by a model of length "
                    f"{self.max_length}: {key}"
                )
        results: list[Any] = [None] * len(requests)
        longest_first = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        progress = tqdm(total=len(texts), desc="log-likelihoods", disable=disable_tqdm)
        for start in range(0, len(texts), self.batch_size):
            members = longest_first[start : start + self.batch_size]
            logprobs_BT, is_greedy_BT = self._score_batch([texts[i] for i in members])
            for row, i in enumerate(members):
                key, _, continuation = requests[i]
                span = slice(len(texts[i]) - len(continuation), len(texts[i]))
                results[i] = float(logprobs_BT[row, span].sum(dtype=np.float64)), bool(is_greedy_BT[row, span].all())
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, results[i])
            progress.update(len(members))
        progress.close()
        return results

    def _score_batch(self, texts: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Log-prob of each token and whether it is the greedy one, [batch_size, tokens]; the longest text is first."""
        # The last token is only a target: the model need not read it.
        tokens_BT = np.zeros((self.batch_size, round_up(len(texts[0]) - 1, self.BUCKET) + 1), np.int32)
        for row, text in enumerate(texts):
            tokens_BT[row, : len(text)] = text
        on_device = jax.device_put(tokens_BT, batch_sharding(self.model.mesh, 2))
        return jax.device_get(score_tokens(self.model.cfg, self.model.params, on_device))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in disjoint windows with one token of context."""
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

    # --- generation ---

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues each text; the result is cut at the first stop string."""
        settings = [normalize_gen_kwargs(r.args[1], self.max_gen_toks) for r in requests]
        groups: dict[SamplingParams, list[int]] = {}  # indices of requests with the same parameters
        for i, request_settings in enumerate(settings):
            groups.setdefault(self._sampling_params(request_settings), []).append(i)
        responses = [""] * len(requests)
        progress = tqdm(total=len(requests), desc="answers", disable=disable_tqdm)
        for sampling_params, members in groups.items():
            max_prompt = self.max_length - sampling_params.max_new_tokens
            prompts = [self.tok_encode(requests[i].args[0])[-max_prompt:] or [self.prefix_token_id] for i in members]
            batch_requests = [Request(str(i), prompt) for i, prompt in zip(members, prompts, strict=True)]
            for batch in self._engine.stream(batch_requests, sampling_params, jax.random.key(self.seed)):
                for completion in batch:
                    i = int(completion.id)
                    text = self.chat.tokenizer.decode([t for t in completion.ids if t not in self.chat.stop_ids])
                    responses[i] = postprocess_generated_text(text, settings[i]["until"], None)
                    self.cache_hook.add_partial("generate_until", requests[i].args, responses[i])
                progress.update(len(batch))
        progress.close()
        return responses

    def _sampling_params(self, settings: dict[str, Any]) -> SamplingParams:
        temperature = float(settings.get("temperature", 0.0)) if settings["do_sample"] else 0.0
        no_op = _NO_OP_SETTINGS | ({"top_k": settings.get("top_k")} if not temperature else {})
        unsupported = {
            k: v for k, v in settings.items() if k not in _SUPPORTED_SETTINGS and v not in (None, no_op.get(k))
        }
        if unsupported:
            given = ", ".join(f"{name}={value!r}" for name, value in unsupported.items())
            supported = ", ".join(sorted(_SUPPORTED_SETTINGS))
            raise ValueError(f"the task's generation settings {given} are not supported; {supported} are")
        if settings["max_gen_toks"] >= self.max_length:
            raise ValueError(
                f"the task asks for {settings['max_gen_toks']} new tokens, but the model's maximum length is "
                f"{self.max_length}: set a smaller max_gen_toks in gen_kwargs"
            )
        return SamplingParams(1, temperature, float(settings.get("top_p", 1.0)), settings["max_gen_toks"])


def adds_bos(folder: epath.Path, chat: Chat) -> bool:
    """Whether a folder's tokenizer puts the BOS token in front of every text, as transformers reads the folder."""
    if not chat.bos:
        return False
    if (path := folder / "tokenizer.json").exists():  # it takes precedence over tokenizer_config.json
        ids = TokenizerJson(foreign.read_text(path, foreign.MAX_TOKENIZER)).encode_as_stored("a")
        return ids[:1] == [chat.tokenizer.special_tokens[chat.bos]]
    settings = folder / "tokenizer_config.json"  # of a SentencePiece model: like Llama's, ours adds BOS by default
    return bool((read_json_object(settings) if settings.exists() else {}).get("add_bos_token", True))
