"""Every setting: its unit and its default."""

import json
from typing import Any

from ml_collections import ConfigDict

from selfreward_jax.config.presets import PRESETS


class ConfigError(ValueError):
    """A setting that cannot work; the message names the field, its value and the remedy."""


def default_config() -> ConfigDict:
    """The default settings: the embedded world on a CPU (scale `tiny`)."""
    c = ConfigDict()
    c.seed = 0  # everything random follows from it
    c.iterations = 2  # train M1 ... M_iterations

    c.data = ConfigDict()
    c.data.ift = ""  # where instructions and answers come from (data/readers.py); empty: the embedded world
    c.data.eft = ""  # where ranked or scored answers come from; empty: the embedded world
    c.data.language = "en"  # rows that name another language are left out; empty: none are
    c.data.shared_to_ift = 0.5  # share of the prompts found in both that IFT gets; EFT gets the others
    c.data.ift_rows = 6000  # instruction rows used; 0: all of a file
    c.data.eft_rows = 5000  # judged rows used; 0: all of a file
    c.data.prompt_rows = 1500  # few-shot rows that teach writing prompts, made of the IFT prompts
    c.data.num_documents = 6000  # plain texts for the base model (embedded world; a file's own rows otherwise)
    c.data.heldout_prompts = 384  # prompts of each of the validation and held-out sets
    c.data.judge_eval_prompts = 256  # prompts of the fixed set that measures the judge
    c.data.judge_eval_answers = 4  # answers to each of them (embedded world)
    c.data.max_malformed_frac = 0.01  # share of malformed rows above which a file is refused

    c.eft = ConfigDict()  # judgments of answers that come without a written one
    c.eft.source = "scores"  # one line made of the score; or baseline: written by the SFT baseline, as in the paper
    c.eft.num_samples = 4  # judgments the baseline writes of each answer
    c.eft.agreement = "strict"  # strict: it orders every pair as the human does; weak: none the other way round
    c.eft.max_share = 0.4  # share of the baseline's rows to which its commonest score is thinned; 1: not thinned

    c.tokenizer = ConfigDict()  # where model.init brings none
    c.tokenizer.vocab_size = 768  # pieces, at most
    c.tokenizer.byte_fallback = False  # spell unknown characters as bytes (256 pieces)

    c.model = ConfigDict()
    c.model.init = ""  # M0: a Hugging Face folder, or hub:OWNER/NAME@REVISION; replaces the shapes to qk_norm
    c.model.dim = 96  # width
    c.model.num_layers = 3  # blocks of attention and feed-forward
    c.model.num_heads = 4  # query heads of a layer
    c.model.num_kv_heads = 2  # key and value heads, which query heads share
    c.model.head_dim = 32  # size of a head
    c.model.mlp_dim = 240  # width of the feed-forward part
    c.model.rope_theta = 10_000.0  # base of the rotary positions
    c.model.norm_eps = 1e-5  # added to the variance in RMSNorm
    c.model.tie_embeddings = True  # the head is the embedding
    c.model.attention_bias = False  # queries, keys and values have biases
    c.model.qk_norm = False  # queries and keys are normed
    c.model.dtype = "float32"  # of the matrix products: float32 or bfloat16
    c.model.scan_layers = False  # one compiled layer (short compiles, TPU) or unrolled (faster on a CPU)
    c.model.remat = "none"  # what the backward pass recomputes: none, dots (all but matrix products) or full (layers)
    c.model.attention = "auto"  # of a text to itself: reference, xla, cudnn or splash; auto: by the platform
    c.model.max_length = 256  # most tokens of prompt and completion together

    c.optimizer = ConfigDict()
    c.optimizer.name = "muon"  # adamw, or muon for the layers' matrices and adamw for the rest
    c.optimizer.b1 = 0.9  # decay of the first moment (adamw)
    c.optimizer.b2 = 0.98  # decay of the second moment (adamw)
    c.optimizer.weight_decay = 0.01  # times the rate, of each step
    c.optimizer.grad_clip_norm = 1.0  # global gradient norm
    c.optimizer.muon_rms = 0.2  # muon updates scaled to this root mean square, as adamw's are
    c.optimizer.moment_dtype = "float32"  # of the first moment: float32 or bfloat16
    c.optimizer.offload = False  # keep the moments in the host's memory between updates (GPU, TPU)

    c.lora = ConfigDict()  # low-rank adapters: SFT and DPO train these and leave M0 as it is
    c.lora.rank = 0  # 0: all weights are trained
    c.lora.alpha = 16.0  # the adapters' product is scaled by alpha / rank
    c.lora.targets = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")  # which matrices of each layer

    c.sft_baseline = False  # train and measure the SFT baseline too: IFT alone, the paper's "SFT" rows
    for name, epochs in (("pretrain", 2.0), ("sft", 1.25)):
        c[name] = ConfigDict()
        c[name].epochs = epochs  # times that each row is read
        c[name].batch_size = 8  # packed rows a step
        c[name].seq_len = 256  # tokens of a packed row
        c[name].lr = 6e-3  # learning rate after the warm-up
        c[name].lr_end = 6e-4  # cosine from lr to lr_end
        c[name].warmup_steps = 20  # steps
        c[name].dropout = 0.0  # rate
        c[name].grad_accum_steps = 1  # microbatches a step
    c.sft.sets = ("ift", "eft", "prompts")  # what M1 is trained on

    c.prompts = ConfigDict()  # new prompts
    c.prompts.template = "new_prompt"  # one of ours, or a file of yours
    c.prompts.writer = ""  # who writes them in every round: a folder or working directory, or world; empty: M_(t-1)
    c.prompts.count = 600  # accepted prompts a round
    c.prompts.batch_size = 256  # attempts made together
    c.prompts.max_attempts = 4096  # after which a round goes on with what it has
    c.prompts.num_seed_examples = 3  # examples shown, from the seeds
    c.prompts.num_generated_examples = 1  # examples shown, from the model's own earlier prompts
    c.prompts.temperature = 1.0  # of sampling
    c.prompts.top_p = 0.95  # mass of the nucleus
    c.prompts.max_new_tokens = 24  # tokens
    c.prompts.max_rouge = 1.0  # ROUGE-L above which a prompt is not new; 1: only equal ones are not
    c.prompts.min_words = 4  # of a prompt
    c.prompts.max_words = 20  # of a prompt

    c.responses = ConfigDict()  # answers to new prompts
    c.responses.num_samples = 4  # answers a prompt
    c.responses.temperature = 1.0  # of sampling
    c.responses.top_p = 0.95  # mass of the nucleus
    c.responses.max_new_tokens = 48  # tokens

    c.judge = ConfigDict()
    c.judge.kind = "model"  # or random: dice, the control
    c.judge.template = "judge_short"  # one of ours, or a file of yours
    c.judge.output_format = "points"  # what a judgment ends in: points (Score: 0 to 5) or choice (Choice: A to E)
    c.judge.aggregation = "votes"  # the score: the votes' mean, or expected: the mean over each vote's score tokens
    c.judge.num_samples = 3  # votes an answer
    c.judge.temperature = 0.7  # of sampling
    c.judge.top_p = 0.95  # mass of the nucleus
    c.judge.max_new_tokens = 112  # tokens; a vote that is cut off is none
    c.judge.min_votes = 1  # readable votes an answer needs

    c.pairs = ConfigDict()
    c.pairs.length_control_rho = 0.0  # length control: share of the score range within which length decides; 0: off

    c.checks = ConfigDict()  # what a round's rows must show, or it stops before training (method/round_checks.py)
    c.checks.min_parse_rate = 0.5  # share of the judge's votes that can be read
    c.checks.min_votes_per_answer = 1.0  # votes on an answer that can be read, in the mean
    c.checks.max_unscored = 0.5  # share of answers without a score
    c.checks.max_ties = 0.9  # share of prompts whose answers all have the same score
    c.checks.max_one_score = 0.9  # share of answers that have the commonest score
    c.checks.min_spread = 0.1  # points between a prompt's best and worst answer, in the mean
    c.checks.num_probe_prompts = (
        24  # prompts with four answers each that say nothing, to see what the judge makes of them
    )
    c.checks.max_probe_lead = 1.0  # points by which these may be above the model's own answers, in the mean
    c.checks.max_length_growth = 2.0  # times as long as in the round before answers may be
    c.checks.max_repeats = 0.9  # share of attempted prompts that were there already
    c.checks.max_leaks = 0.02  # share of new prompts that hold one that was shown or held out
    c.checks.max_fall = 3.0  # times as low as at the start chosen log-probs may fall in training without a warning

    c.dpo = ConfigDict()
    c.dpo.loss = "sigmoid"  # train/preference_losses.py has the names
    c.dpo.label_smoothing = 0.0  # share of pairs taken to be the wrong way round (cdpo, robust)
    c.dpo.gamma = 0.5  # margin that simpo asks for
    c.dpo.epochs = 2.0  # times that each pair is read
    c.dpo.batch_size = 16  # pairs a step
    c.dpo.lr = 2e-3  # learning rate after the warm-up
    c.dpo.lr_end = 2e-4  # cosine from lr to lr_end
    c.dpo.warmup_steps = 10  # steps
    c.dpo.dropout = 0.0  # rate
    c.dpo.beta = 0.1  # how strongly the reference is kept to
    c.dpo.dpo_weight = 1.0  # of the DPO loss itself; 0 leaves nll and replay
    c.dpo.nll_weight = 1.0  # weight of the chosen answer's mean negative log-prob
    c.dpo.replay_weight = 4.0  # weight of the SFT loss on replayed seed rows
    c.dpo.replay_sets = ("eft", "prompts")  # which rows: ift, eft, prompts
    c.dpo.replay_batch_size = 16  # packed rows a step
    c.dpo.replay_seq_len = 256  # tokens of a packed row
    c.dpo.grad_accum_steps = 1  # microbatches a step
    c.dpo.eval_every = 0  # steps between early-stopping comparisons; 0: none
    c.dpo.eval_prompts = 253  # validation prompts of a comparison

    c.pairwise = ConfigDict()  # head to head where a model judges
    c.pairwise.method = "scores"  # scores: each answer judged alone; pairwise: side by side, in both orders
    c.pairwise.template = "judge_pairwise"  # of the form pairwise
    c.pairwise.max_new_tokens = 112  # tokens of a verdict

    c.endpoint = ConfigDict()  # head to head where an OpenAI-compatible server judges
    c.endpoint.base_url = ""  # up to and with /v1
    c.endpoint.model = ""  # as the server calls it
    c.endpoint.api_key_env = "OPENAI_API_KEY"  # environment variable that holds the key
    c.endpoint.max_tokens = 512  # of a verdict with its reasons
    c.endpoint.max_requests = 1000  # paid requests an evaluation may make
    c.endpoint.retries = 5  # of a request that failed for a reason that may pass
    c.endpoint.timeout_s = 60.0  # seconds

    c.sampling = ConfigDict()
    c.sampling.max_concurrent = 256  # samples decoded together

    c.evaluate = ConfigDict()
    c.evaluate.split = "heldout"  # or "validation", for choosing settings
    c.evaluate.num_samples = 2  # answers to each prompt
    c.evaluate.best_of = 1  # drawn for each of them, of which the model's own judge takes the best
    c.evaluate.temperature = 0.7  # of sampling
    c.evaluate.top_p = 0.9  # mass of the nucleus
    c.evaluate.max_new_tokens = 48  # tokens

    c.parallel = ConfigDict()
    c.parallel.fsdp = 1  # devices that share each weight; the rest go to data parallelism
    c.parallel.tensor = 1  # devices that share each matrix product
    c.parallel.replicas = 1  # whole copies that meet once a step over a slow network: the slices of a multislice TPU
    c.parallel.sampling_tensor = 0  # devices that share each matrix product while text is sampled; 0: as `tensor`
    c.parallel.timeout_s = 1800.0  # seconds that processes wait for each other before they give up

    c.report = ConfigDict()
    c.report.tensorboard = True  # training curves as event files too, but in a bucket; in events.jsonl they always are
    c.report.wandb = ""  # project of Weights & Biases that they are sent to (pip install wandb); empty: none

    c.max_nonfinite_steps = (
        0  # steps in a row that may be left out because their gradient is not finite; 0: the run stops
    )
    c.checkpoint_every = 200  # training steps between saved states; 0: none
    c.shutdown_timeout_s = 45.0  # seconds after SIGTERM or SIGINT in which what is at hand is finished and saved
    return c.lock()


def get_config(preset: str = "") -> ConfigDict:
    """The settings of a scale.

    Raises:
      ConfigError: there is no scale of that name.
    """
    c = default_config()
    if preset in ("", "tiny"):
        return c
    if preset not in PRESETS:
        raise ConfigError(f"scale {preset!r} is not known; scales: tiny, {', '.join(PRESETS)}")
    c.update_from_flattened_dict(PRESETS[preset])
    return c


def from_stored(stored: dict[str, Any]) -> ConfigDict:
    """The settings that a working directory's config.json holds.

    Raises:
      ConfigError: it has a field that is no setting, or lacks one.
    """
    c = default_config()
    stored = {name: value for name, value in stored.items() if name != "inputs"}
    if difference := _missing(json.loads(c.to_json()), stored):
        raise ConfigError(f"config.json of another version: {difference}")
    with c.unlocked():
        c.update(stored)
    c.dpo.replay_sets, c.sft.sets, c.lora.targets = map(tuple, (c.dpo.replay_sets, c.sft.sets, c.lora.targets))
    return c


def _missing(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> str | None:
    for name in sorted(ours.keys() ^ theirs.keys()):
        return f"the field {prefix}{name} is only in {'this program' if name in ours else 'the file'}"
    parts = [_missing(ours[n], theirs[n], f"{prefix}{n}.") for n in ours if isinstance(ours[n], dict)]
    return next(filter(None, parts), None)
