"""Supervised training on packed texts: M0, the SFT baseline, and M1."""

from collections.abc import Callable, Sequence
from functools import partial

from selfreward_jax.llm import lora
from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.parameters import Params, init_params, parameter_count
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.common import seed_examples
from selfreward_jax.stages.training import Job, drop_overlong, is_trained, train
from selfreward_jax.telemetry.terminal import log_line
from selfreward_jax.train.monitor import TrainingMonitor
from selfreward_jax.train.sft import loss_fn, make_batch_fn


def sft_baseline(run: Run, model: str) -> None:
    """sft: M0 trained on IFT alone, the paper's SFT baseline."""
    if not is_trained(run, model):
        train_packed(run, model, "sft", seed_examples(run, ("ift",))["ift"], partial(_from_base, run, model))


def sft(run: Run, model: str) -> None:
    """m1: M0 trained on the sets that sft.sets names: IFT, EFT and the task of writing prompts."""
    if not is_trained(run, model):
        examples = [e for of_set in seed_examples(run, run.cfg.sft.sets).values() for e in of_set]
        train_packed(run, model, "sft", examples, partial(_from_base, run, model))


def _from_base(run: Run, model: str) -> Params:
    """Where supervised training starts: M0's parameters, or fresh adapters."""
    if not run.cfg.lora.rank:
        return run.models.load_trainable("m0")
    specs = lora.trainable_specs(run.models.model_config(adapters=True))
    log_line(f"  {model} adapters: {parameter_count(specs):,} parameters are trained")
    return run.models.init_params(lambda key: init_params(key, specs, "float32"), specs, model)


def train_packed(run: Run, model: str, stage: str, examples: Sequence[Example], start: Callable[[], Params]) -> None:
    """MODEL/checkpoint: trained from `start()` on packed examples, with the settings of `stage`."""
    settings = run.cfg[stage]
    examples = drop_overlong(examples, settings.seq_len, f"{model} {stage}", f"{stage}.seq_len")
    decoder = Decoder(run.models.model_config(settings.dropout, adapters=model != "m0"))
    seed = run.files.stage_seed(model, stage)
    steps, batch_at = make_batch_fn(examples, settings, seed, run.models.mesh, decoder.cfg)
    tokens = settings.batch_size * settings.seq_len
    metadata = {"rows": len(examples)}
    train(run, Job(model, stage, loss_fn(decoder), steps, batch_at, start, tokens, TrainingMonitor(), metadata))
