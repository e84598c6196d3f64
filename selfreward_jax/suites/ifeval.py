"""IFEval (arXiv 2311.07911): instructions that a program can check, by the checkers of lm-evaluation-harness.

Published as google/IFEval: rows {key, prompt, instruction_id_list, kwargs}. The harness would download nltk's data.
Here nothing is downloaded: two kinds of instruction need them, and are left out where they are not installed.
"""

import functools
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from selfreward_jax.config import ConfigError
from selfreward_jax.method.rows import Row

FIELDS = {"key": (int, str), "prompt": str, "instruction_id_list": list, "kwargs": list}
NEEDS_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
METRICS = ("prompt strict", "instruction strict", "prompt loose", "instruction loose")


@functools.cache
def _harness() -> tuple[ModuleType, bool]:
    """The harness's module, and whether nltk's sentence data are there.

    Raises:
      ConfigError: the harness is not installed.
    """
    rank = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"  # only rank 0 downloads
    try:
        import langdetect
        import nltk
        from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise ConfigError(
            f'--suite=ifeval needs lm_eval with its checkers ({error}): pip install "selfreward_jax[eval]"'
        ) from None
    finally:
        os.environ.pop("LOCAL_RANK")
        if rank is not None:
            os.environ["LOCAL_RANK"] = rank
    langdetect.DetectorFactory.seed = 0  # else it draws at random
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return utils, False
    return utils, True


def prepare(_: Sequence[Row]) -> None:
    """Checks that the harness is installed.

    Raises:
      ConfigError: it is not.
    """
    _harness()


def check(row: Row, response: str) -> dict[str, list[bool | None]]:
    """Which instructions a response follows, "strict" and "loose"; None for one that cannot be checked here.

    Raises:
      ConfigError: the harness is not installed, or does not know an instruction or its arguments.
    """
    utils, has_punkt = _harness()
    verdicts: dict[str, list[bool | None]] = {"strict": [], "loose": []}
    for kind, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        if kind in NEEDS_PUNKT and not has_punkt:
            for name in verdicts:
                verdicts[name].append(None)
            continue
        doc = {"key": row["key"], "prompt": row["prompt"], "instruction_id_list": [kind], "kwargs": [arguments]}
        try:
            result = utils.process_results(doc, [response])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"--suite=ifeval: row {row['key']}: {kind!r} cannot be checked ({type(error).__name__}: {error}): give "
                "the published file, and lm_eval 0.4.13 or later"
            ) from None
        for name in verdicts:
            verdicts[name].append(result[f"inst_level_{name}_acc"][0])
    return verdicts


def tally(verdicts: dict[str, Sequence[bool | None]]) -> dict[str, tuple[int, int]]:
    """For each metric how much of a row counts for it, and out of how much."""
    counts: dict[str, tuple[int, int]] = {}
    for name in ("strict", "loose"):
        known = [v for v in verdicts[name] if v is not None]
        counts[f"prompt {name}"] = (int(all(known)), 1) if known else (0, 0)
        counts[f"instruction {name}"] = (sum(known), len(known))
    return {metric: counts[metric] for metric in METRICS}


def prompt(row: Row) -> Any:
    """What a model is asked."""
    return row["prompt"]
