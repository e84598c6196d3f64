"""What generate and chat share: the model that the options name, and how to sample from it."""

import argparse

from etils import epath

from selfreward_jax.config import ConfigError
from selfreward_jax.runs.loading import LoadedModel, load_model
from selfreward_jax.runs.run import CONFIG_FILE
from selfreward_jax.sampling.engine import SamplingParams

MINIMUMS = {"num_samples": 1, "max_new_tokens": 1, "max_concurrent": 1, "max_length": 0, "temperature": 0}


def load_named(options: argparse.Namespace) -> LoadedModel:
    """The model that --workdir and --model name.

    Raises:
      ConfigError, ModelFormatError: there is none.
    """
    if options.workdir:
        return load_model(options.workdir, options.model)
    if not options.model:
        raise ConfigError("--workdir is missing: give a run, or with --model a Hugging Face folder or a hub id")
    if (epath.Path(options.model) / CONFIG_FILE).exists() and (epath.Path(options.model) / "events.jsonl").exists():
        raise ConfigError(
            f"--model={options.model} is a run: write --workdir={options.model}, and --model=m2 for one of it"
        )
    return load_model(options.model)


def make_sampling_params(options: argparse.Namespace, num_samples: int = 1) -> SamplingParams:
    """How to sample.

    Raises:
      ConfigError: an option is out of range.
    """
    for name, minimum in MINIMUMS.items():
        value = getattr(options, name, minimum)
        if not value >= minimum:
            raise ConfigError(f"--{name} is {value}; it must be at least {minimum}")
    if not 0 < options.top_p <= 1:
        raise ConfigError(f"--top_p is {options.top_p}; it must be above 0 and at most 1")
    return SamplingParams(num_samples, options.temperature, options.top_p, options.max_new_tokens)
