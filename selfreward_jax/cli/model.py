"""What generate and chat share: the model that the options name, and how to sample from it."""

import argparse

from etils import epath

from selfreward_jax.config import ConfigError
from selfreward_jax.runs.loading import LoadedModel, load_model
from selfreward_jax.runs.run import CONFIG_FILE
from selfreward_jax.sampling import requests
from selfreward_jax.sampling.engine import SamplingParams

MINIMUMS = {"max_concurrent": 1, "max_length": 0}


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


def check_room(options: argparse.Namespace, max_length: int) -> None:
    """Raises ConfigError where the answer alone fills what the model takes."""
    if options.max_new_tokens >= max_length:
        name = "--max_length" if 0 < options.max_length <= max_length else "the model"
        raise ConfigError(
            f"--max_new_tokens is {options.max_new_tokens}; {name} allows {max_length} tokens for prompt and response "
            f"together: give fewer than {max_length}"
        )


def make_sampling_params(options: argparse.Namespace, num_samples: int = 1) -> SamplingParams:
    """How to sample.

    Raises:
      ConfigError: an option is out of range.
    """
    for name, minimum in MINIMUMS.items():
        if (value := getattr(options, name, minimum)) < minimum:
            raise ConfigError(f"--{name} is {value}; it must be at least {minimum}")
    try:
        requests.make_key(options.seed)
        return requests.make_sampling_params(num_samples, options.temperature, options.top_p, options.max_new_tokens)
    except ConfigError as error:
        raise ConfigError(f"--{error}") from None
