"""Every setting with its default. The comment behind it is its documentation in docs/settings.md."""

from ml_collections import ConfigDict

from selfreward_jax.config.errors import ConfigError
from selfreward_jax.config.presets import PRESETS


def default_config() -> ConfigDict:
    """The default settings: the toy world on a CPU (preset `tiny`)."""
    c = ConfigDict()
    c.seed = 0  # random seed of the whole run
    c.iterations = 2  # N: train the models M1 to M_N
    c.world = "toy"  # toy: the embedded task, unless data.ift is given; checkable: instructions added to data.ift

    c.data = ConfigDict()  # seed data
    c.data.ift = ""  # source of instructions with responses (IFT; forms in docs/data.md); empty: the toy world
    c.data.eft = ""  # source of ranked or scored responses (EFT); empty: the toy world
    c.data.columns = ""  # your own names of columns, as FIELD=COLUMN with commas: "prompt=task,response=solution"
    c.data.language = "en"  # language code; rows that name another language are dropped; empty: keep all rows
    c.data.shared_to_ift = 0.5  # of the prompts that IFT and EFT share: fraction that goes to IFT, the rest to EFT
    c.data.ift_rows = 6000  # instruction rows; 0: all rows of the file
    c.data.eft_rows = 5000  # judged rows; 0: all rows of the file
    c.data.comparison_rows = 0  # comparisons of two judged answers, for sft.sets and dpo.replay_sets; 0: none
    c.data.meta_rows = 0  # comparisons of two judgments of an answer (worlds only), for the same; 0: none
    c.data.prompt_rows = 1500  # few-shot rows, built from the IFT prompts, that teach the model to write prompts
    c.data.num_documents = 6000  # pretraining texts of the toy world (with files: one text for each IFT row)
    c.data.heldout_prompts = 384  # prompts in each of the validation set and the held-out set
    c.data.judge_eval_prompts = 256  # prompts in the fixed set that measures the judge
    c.data.judge_eval_answers = 4  # responses per prompt of that set (toy world)
    c.data.max_malformed_frac = 0.01  # a file with a larger fraction of malformed rows is refused

    c.eft = ConfigDict()  # judgments for EFT responses that have no written judgment
    c.eft.source = "scores"  # scores: one line made from the score; baseline: the SFT baseline writes it (the paper)
    c.eft.num_samples = 4  # judgments that the SFT baseline samples for each response
    c.eft.agreement = "strict"  # with the human ranking; strict: all pairs in its order; weak: some, none reversed
    c.eft.max_share = 0.4  # cap on the most frequent score's share of the baseline's rows; 1: no cap

    c.tokenizer = ConfigDict()  # trained on the seed data, where model.init has no tokenizer
    c.tokenizer.vocab_size = 768  # maximum number of tokens in the vocabulary
    c.tokenizer.byte_fallback = False  # encode unknown characters as bytes (takes 256 tokens of the vocabulary)

    c.model = ConfigDict()  # the decoder
    c.model.init = ""  # M0: a Hugging Face folder or OWNER/NAME@REVISION; replaces the fields from dim to qk_norm
    c.model.dim = 96  # size of the residual stream
    c.model.num_layers = 3  # decoder layers
    c.model.num_heads = 4  # query heads per layer
    c.model.num_kv_heads = 2  # key and value heads per layer; must divide num_heads
    c.model.head_dim = 32  # size of a head; even
    c.model.mlp_dim = 240  # hidden size of the feed-forward block
    c.model.rope_theta = 10_000.0  # base of the rotary position embedding
    c.model.norm_eps = 1e-5  # epsilon of RMSNorm
    c.model.tie_embeddings = True  # share the weights of the embedding and the output layer
    c.model.attention_bias = False  # biases on queries, keys and values
    c.model.qk_norm = False  # RMSNorm on queries and keys
    c.model.dtype = "float32"  # compute dtype: float32 or bfloat16
    c.model.scan_layers = False  # scan over layers (compiles fast, for TPU) or unroll them (runs faster on a CPU)
    c.model.remat = "none"  # recompute in the backward pass: none, dots (all but matrix products) or full (layers)
    c.model.attention = "auto"  # kernel: reference, xla, cudnn or splash; auto: chosen by platform
    c.model.max_length = 256  # maximum tokens of prompt and completion together

    c.chat = ConfigDict()  # the chat format of model.init
    c.chat.thinking = "off"  # if its template has thinking blocks; off: answers alone; on: the model thinks first

    c.optimizer = ConfigDict()  # the optimizer of all training stages
    c.optimizer.name = "muon"  # adamw, or muon (for the matrices of the layers, with adamw for the rest)
    c.optimizer.b1 = 0.9  # adamw: decay of the first moment
    c.optimizer.b2 = 0.98  # adamw: decay of the second moment
    c.optimizer.weight_decay = 0.01  # decoupled weight decay; each step multiplies it by the learning rate
    c.optimizer.grad_clip_norm = 1.0  # maximum global norm of the gradient
    c.optimizer.muon_rms = 0.2  # muon: root mean square that updates are scaled to, to match adamw's
    c.optimizer.moment_dtype = "float32"  # dtype of the first moment: float32 or bfloat16
    c.optimizer.offload = False  # keep the moments in host memory between updates (GPU, TPU)

    c.lora = ConfigDict()  # low-rank adapters: SFT and DPO train only these, and M0 stays frozen
    c.lora.rank = 0  # rank of the adapters; 0: no adapters, train all weights
    c.lora.alpha = 16.0  # the product of the adapters is scaled by alpha / rank
    c.lora.targets = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")  # matrices that get adapters, in each layer

    c.sft_baseline = False  # also train and evaluate the SFT baseline: IFT only, the "SFT" rows of the paper
    for name, epochs in (("pretrain", 2.0), ("sft", 1.25)):
        c[name] = ConfigDict()  # training on packed rows; M0 comes from pretrain, M1 from sft
        c[name].epochs = epochs  # passes over the rows
        c[name].batch_size = 8  # packed rows per step; 0 in SFT: from the machine
        c[name].seq_len = 256  # tokens per packed row
        c[name].lr = 6e-3  # learning rate after warmup
        c[name].lr_end = 6e-4  # learning rate at the end of the cosine decay
        c[name].warmup_steps = 20  # steps of linear warmup, at most half of all steps
        c[name].dropout = 0.0  # dropout rate
        c[name].grad_accum_steps = 1  # microbatches that a batch is split into; 0 (sft): from the machine
    c.sft.sets = ("ift", "eft", "prompts")  # seed sets that M1 is trained on: ift, eft, comparisons, meta, prompts

    c.prompts = ConfigDict()  # generation of new prompts
    c.prompts.template = "new_prompt"  # a built-in template, or the path of a file
    c.prompts.source = ""  # file of prompts that each round takes new ones from; empty: a model writes them
    c.prompts.writer = ""  # who writes them: folder, workdir, hub:OWNER/NAME, endpoint, or world (toy); empty: M_(t-1)
    c.prompts.count = 600  # accepted prompts per round
    c.prompts.later_count = 0  # accepted prompts per round from M3 on; 0: prompts.count
    c.prompts.batch_size = 256  # attempts generated together, from the same examples; 0: from the machine
    c.prompts.max_attempts = 4096  # attempts per round; after them the round uses the prompts accepted so far
    c.prompts.num_seed_examples = 3  # few-shot examples from the seed prompts
    c.prompts.num_generated_examples = 1  # few-shot examples from prompts that the model generated before
    c.prompts.temperature = 1.0  # sampling temperature; 0: greedy
    c.prompts.top_p = 0.95  # nucleus sampling: probability mass to sample from
    c.prompts.max_new_tokens = 24  # maximum tokens of a prompt
    c.prompts.max_rouge = 1.0  # drop prompts with a higher ROUGE-L to a known prompt; 1: drop duplicates only
    c.prompts.multiline = False  # prompts may have several lines; few-shot examples are then between <request> marks
    c.prompts.min_words = 4  # minimum words of a prompt
    c.prompts.max_words = 20  # maximum words of a prompt

    c.responses = ConfigDict()  # responses to the new prompts
    c.responses.num_samples = 4  # responses per prompt
    c.responses.temperature = 1.0  # sampling temperature; 0: greedy
    c.responses.top_p = 0.95  # nucleus sampling: probability mass to sample from
    c.responses.max_new_tokens = 48  # maximum tokens of a response

    c.judge = ConfigDict()  # scores of the responses
    c.judge.kind = "model"  # model: M_(t-1) scores its responses; pairwise: it compares them; random: a control
    c.judge.opponents = 0  # pairwise: others that each response is compared with, an even number, in a ring; 0: all
    c.judge.length_gate = "none"  # pairwise: none, window (a win counts at .8 to 1.2 of the loser's length) or scale
    c.judge.template = "judge_short"  # a built-in template, or the path of a file
    c.judge.output_format = "points"  # how a judgment ends: points (Score: 0 to 5) or choice (Choice: A to E)
    c.judge.aggregation = "mean"  # of a response's votes: mean, or expected (each vote: mean over its score tokens)
    c.judge.num_samples = 3  # votes per response: sampled judgments
    c.judge.temperature = 0.7  # sampling temperature; 0: greedy
    c.judge.top_p = 0.95  # nucleus sampling: probability mass to sample from
    c.judge.max_new_tokens = 112  # maximum tokens of a judgment; one that is cut off is no vote
    c.judge.accept_complete = False  # read a judgment that is cut off without its last line, which may be incomplete
    c.judge.shots = 0  # judged seed rows shown before a response, for a model that was not taught to judge
    c.judge.min_votes = 1  # parseable votes that a response needs for a score

    c.pairs = ConfigDict()  # preference pairs
    c.pairs.length_control_rho = 0.0  # fraction of the score range at either end where length decides; 0: off
    c.pairs.rejected = "worst"  # worst (lowest score), two_sigma (near mean - 2 sd) or anchor (M1's worst, from M3)
    c.pairs.anchor_samples = 2  # anchor: responses of M1 per prompt
    c.pairs.min_gap = 0.0  # minimum difference in points between the chosen and the rejected score
    c.pairs.agreement = "none"  # smooths labels: none, votes (of two halves) or judges (with M_(t-2), from M3 on)

    c.checks = ConfigDict()  # limits on a round's data; outside them the run stops before DPO (docs/report.md)
    c.checks.min_parse_rate = 0.5  # minimum fraction of votes that can be parsed
    c.checks.min_votes_per_answer = 1.0  # minimum mean number of parseable votes per response
    c.checks.max_unscored = 0.5  # maximum fraction of responses without a score
    c.checks.max_ties = 0.9  # maximum fraction of prompts whose responses all have the same score
    c.checks.max_one_score = 0.9  # maximum fraction of responses that have the most frequent score
    c.checks.min_spread = 0.1  # minimum mean difference in points between a prompt's best and worst response
    c.checks.num_probe_prompts = 24  # prompts for which the judge also scores 4 degenerate responses (probes)
    c.checks.max_probe_lead = 1.0  # maximum mean score of the probes, in points above the model's own responses
    c.checks.num_hack_prompts = 24  # prompts whose responses get planted hacks, which are judged as well; 0: none
    c.checks.max_hack_gain = 0.5  # maximum mean gain of a kind of hack above a poor response; 1: to the best score
    c.checks.max_truncated = 0.6  # maximum share of responses that are scored no lower when cut off half-way
    c.checks.max_length_growth = 2.0  # maximum ratio of the mean response length to the round before
    c.checks.max_repeats = 0.9  # maximum fraction of attempted prompts that repeat a known prompt
    c.checks.max_leaks = 0.02  # maximum fraction of new prompts that contain a few-shot or held-out prompt
    c.checks.max_fall = 3.0  # warn in DPO if the chosen log-probs fall below this multiple of their start value

    c.dpo = ConfigDict()  # preference training, from M_(t-1) to M_t
    c.dpo.reference = "previous"  # the fixed reference: previous (M_(t-1), the paper) or m1
    c.dpo.loss = "sigmoid"  # sigmoid, hinge, ipo, ipo_mean, cdpo, robust, simpo or sigmoid_norm (docs/evaluation.md)
    c.dpo.label_smoothing = 0.0  # assumed fraction of pairs with swapped labels, below 0.5 (cdpo, robust)
    c.dpo.gamma = 0.5  # target margin (simpo)
    c.dpo.epochs = 2.0  # passes over the pairs
    c.dpo.batch_size = 16  # pairs per step; 0: from the machine
    c.dpo.lr = 2e-3  # learning rate after warmup
    c.dpo.lr_end = 2e-4  # learning rate at the end of the cosine decay
    c.dpo.warmup_steps = 10  # steps of linear warmup, at most half of all steps
    c.dpo.dropout = 0.0  # dropout rate
    c.dpo.beta = 0.1  # strength of the pull towards the reference model
    c.dpo.dpo_weight = 1.0  # weight of the DPO loss; 0: only NLL and replay
    c.dpo.nll_weight = 1.0  # weight of the chosen response's mean negative log-likelihood per token
    c.dpo.replay_weight = 4.0  # weight of the SFT loss on replayed seed rows
    c.dpo.replay_sets = ("eft", "prompts")  # seed sets that are replayed: ift, eft, comparisons, meta, prompts
    c.dpo.replay_batch_size = 16  # packed replay rows per step; 0: from the machine
    c.dpo.replay_seq_len = 256  # tokens per packed replay row
    c.dpo.length_buckets = 1  # lengths that batches are padded to; above 1, a batch has pairs of similar length
    c.dpo.grad_accum_steps = 1  # microbatches that a batch is split into; 0: from the machine
    c.dpo.judge_pairs = "none"  # also train on pairs of judgments: none, pairwise (of judge.kind=pairwise) or meta
    c.dpo.judge_pair_max_length = 0  # meta: longest chosen judgment in characters; 0: any
    c.dpo.judge_pair_share = 0.25  # fraction of a batch that is pairs of judgments; fewer where they would repeat
    c.dpo.judge_pair_rounds = 0  # the first rounds that have pairs of judgments; 0: all
    c.dpo.eval_every = 0  # steps between the comparisons of early stopping; 0: no early stopping
    c.dpo.eval_prompts = 253  # validation prompts per comparison

    c.pairwise = ConfigDict()  # comparison with a model as the judge: head-to-head, and judge.kind=pairwise
    c.pairwise.method = "scores"  # scores: judge each response alone; pairwise: both in one prompt, in both orders
    c.pairwise.template = "judge_pairwise"  # template with both responses: a built-in one, or a file's path
    c.pairwise.max_new_tokens = 112  # maximum tokens of a judgment

    c.meta = ConfigDict()  # the model as a judge of its judgments: dpo.judge_pairs=meta
    c.meta.template = "meta_judge"  # template with both judgments: a built-in one, or a file's path
    c.meta.max_new_tokens = 128  # maximum tokens of a judgment of judgments

    c.endpoint = ConfigDict()  # an OpenAI-compatible server: judge of head-to-head comparisons, or writer of prompts
    c.endpoint.base_url = ""  # URL of the server, up to and including /v1
    c.endpoint.model = ""  # the server's name of the model
    c.endpoint.api_key_env = "OPENAI_API_KEY"  # name of the environment variable that holds the API key
    c.endpoint.max_tokens = 512  # maximum tokens of a judgment with its reasons
    c.endpoint.max_requests = 1000  # maximum paid requests per evaluation, or per round of prompts
    c.endpoint.retries = 5  # retries of a request after a temporary failure
    c.endpoint.timeout_s = 60.0  # seconds until a request times out

    c.sampling = ConfigDict()  # all text generation
    c.sampling.max_concurrent = 256  # sequences decoded in parallel; 0: from the machine

    c.evaluate = ConfigDict()  # evaluation of each model
    c.evaluate.split = "heldout"  # prompt set: heldout, or validation (to choose settings)
    c.evaluate.num_samples = 2  # responses per prompt
    c.evaluate.best_of = 1  # candidates per response; the model's own judge picks the best; 1: no selection
    c.evaluate.temperature = 0.7  # sampling temperature; 0: greedy
    c.evaluate.top_p = 0.9  # nucleus sampling: probability mass to sample from
    c.evaluate.max_new_tokens = 48  # maximum tokens of a response

    c.parallel = ConfigDict()  # the device mesh
    c.parallel.fsdp = 1  # devices that shard each weight; the others do data parallelism; 0: from the machine
    c.parallel.tensor = 1  # devices that shard each matrix product (tensor parallelism); 0: from the machine
    c.parallel.replicas = 1  # model copies that sync once per step: slices of a multislice TPU; 0: from the machine
    c.parallel.sampling_tensor = 0  # as tensor, while sampling; 0: the same number, or with it from the machine
    c.parallel.timeout_s = 1800.0  # seconds that a process waits for the others before it gives up

    c.report = ConfigDict()  # where training curves go besides events.jsonl
    c.report.tensorboard = True  # also write training curves as TensorBoard files (not in a bucket)
    c.report.wandb = ""  # Weights & Biases project that gets the training curves (pip install wandb); empty: none

    c.max_nonfinite_steps = 0  # consecutive training steps that may be skipped for a non-finite gradient; 0: none
    c.checkpoint_every = 200  # training steps between checkpoints; 0: none
    c.shutdown_timeout_s = 45.0  # seconds after SIGTERM or SIGINT to finish and save the work in progress
    return c.lock()


def get_config(preset: str = "") -> ConfigDict:
    """The settings of a preset; "" is `tiny`.

    Raises:
      ConfigError: there is no preset of that name.
    """
    c = default_config()
    if preset in ("", "tiny"):
        return c
    if preset not in PRESETS:
        raise ConfigError(f"preset is {preset!r}; it must be one of: tiny, {', '.join(PRESETS)}")
    c.update_from_flattened_dict(PRESETS[preset])
    return c
