"""The one parser of the command line: every command with its options, its help, and what it says of mistakes.

Nothing here imports jax, so that help is shown at once.
"""

import argparse
import difflib
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, NoReturn

from selfreward_jax.cli import settings
from selfreward_jax.config import ConfigError, default_config, files
from selfreward_jax.config.comments import field_comments, flatten_config
from selfreward_jax.config.paths import expand_home
from selfreward_jax.config.presets import PRESETS, SUMMARIES

PROGRAM = "selfreward-jax"
PATH_OPTIONS = ("config", "workdir", "model", "out", "prompts", "opponent", "compile_cache")  # ~ is the home folder
DTYPES = ("float32", "bfloat16", "float16")
ENDPOINT_FIELDS = {
    "endpoint.base_url": str, "endpoint.model": str, "endpoint.max_tokens": int, "endpoint.max_requests": int,
    "pairwise.method": str, "pairwise.max_new_tokens": int,
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would end the program."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (`{self.prog} --help` lists the options)")


def _run(parser: _Parser) -> None:
    _configuration(parser)
    parser.add_argument(
        "--workdir", default="runs/default", help="the run: a folder or gs://BUCKET/FOLDER (%(default)s)"
    )
    parser.add_argument("--dry_run", action="store_true", help="the same as `check`")
    _machine(parser)
    _changes(parser)
    _cache(parser)
    several = parser.add_argument_group("several processes, each started with the same command")
    several.add_argument(
        "--distributed", action="store_true", help="TPU pods, GKE, Slurm, Open MPI: found by themselves"
    )
    several.add_argument("--coordinator_address", help="or HOST:PORT of the first process, with the next two")
    several.add_argument("--num_processes", type=int, help="number of processes")
    several.add_argument("--process_id", type=int, help="index of this process, from 0")


def _machine(parser: _Parser) -> None:
    parser.add_argument(
        "--machine", default="", help="check for this TPU slice, such as v5e:4x4, or these GPUs, such as h100:8"
    )


def _check(parser: _Parser) -> None:
    _configuration(parser)
    parser.add_argument("--workdir", default="runs/default", help="the run (%(default)s)")
    _machine(parser)
    _changes(parser)


def _fits(parser: _Parser) -> None:
    _configuration(parser)
    parser.add_argument(
        "--topology", default="", help="a slice, GENERATION:AxB[xC], such as v5p:4x4x4, or GPUs, such as h100:8"
    )
    parser.add_argument(
        "--tokens", type=int, default=0, help="longer side of a pair in DPO (default: the longest that a run may have)"
    )
    parser.add_argument("--only", default="", help="compile only these programs, separated by commas")
    parser.add_argument("--json", action="store_true", help="one JSON line per program instead of a table")


def _evaluate(parser: _Parser) -> None:
    parser.add_argument("--workdir", required=True, help="the run")
    parser.add_argument("--models", default="", help="models to evaluate, such as m1,m2 (default: all trained models)")
    parser.add_argument(
        "--judge",
        default="",
        help="oracle, endpoint, or a model of the run (default: oracle if any, else the last model)",
    )
    parser.add_argument("--opponent", default="", help="another model: a run, a Hugging Face folder, or a hub id")
    parser.add_argument("--opponent_model", default="", help="model of the opponent's run (default: the last one)")
    parser.add_argument("--audit", type=int, help="audit models as judges instead, on so many prompts")
    parser.add_argument("--suite", default="", help="measure on these instead: ifeval, gsm8k, llmbar, judgebench")
    parser.add_argument("--suite_dir", default="", help="folder with a folder for each suite, which holds its file")
    parser.add_argument("--suite_tokens", type=int, default=512, help="most tokens of a suite's answer (%(default)s)")
    for field, kind in ENDPOINT_FIELDS.items():
        parser.add_argument(f"--{field}", type=kind, help=f"overrides the run's {field}")
    _cache(parser)


def _generate(parser: _Parser) -> None:
    _model(parser)
    parser.add_argument("--prompts", required=True, help="prompt file: JSON lines, or a JSON list")
    parser.add_argument("--out", required=True, help="file to write; it must not exist")
    parser.add_argument(
        "--format", default="rows", choices=("rows", "alpaca_eval", "mt_bench"), help="of both files (%(default)s)"
    )
    parser.add_argument("--raw", action="store_true", help="prompts are text to continue, not user messages")
    parser.add_argument("--label", default="", help="model name in a benchmark's file (default: the model's own)")
    parser.add_argument("--num_samples", type=int, default=1, help="responses per prompt (%(default)s)")
    parser.add_argument("--max_concurrent", type=int, default=32, help="responses decoded at once (%(default)s)")
    parser.add_argument("--logprobs", action="store_true", help="also write the sampled token ids and their log-probs")
    _sampling(parser)
    _cache(parser)


def _chat(parser: _Parser) -> None:
    _model(parser)
    _sampling(parser)
    _cache(parser)


def _export(parser: _Parser) -> None:
    parser.add_argument("--workdir", required=True, help="the run")
    parser.add_argument("--model", default="", help="model to export, such as m3 (default: the last one)")
    parser.add_argument("--pairs", default="", help="export the preference pairs of a round, such as m2, not a model")
    parser.add_argument("--out", required=True, help="folder or file to write; it must not exist")
    parser.add_argument(
        "--format",
        choices=("hf", "peft", "conversational", "standard"),
        help="of a model: hf (default), or peft for the adapters alone; of pairs: conversational (default) or standard",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights (default: that of the initial model; float32 for adapters)",
    )
    parser.add_argument("--shard_gb", type=float, default=5.0, help="maximum gigabytes per weight file (%(default)s)")
    parser.add_argument("--push", default="", help="upload to OWNER/NAME of the Hugging Face hub, with your token")
    parser.add_argument("--public", action="store_true", help="make a new repository of --push public, not private")


def _report(parser: _Parser) -> None:
    parser.add_argument("--workdir", required=True, help="the run, finished or not")


def _explain(parser: _Parser) -> None:
    parser.add_argument("--workdir", required=True, help="the run")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--pair", help="where a preference pair comes from; its id as in pairs.jsonl, such as m2/17")
    mode.add_argument("--time", action="store_true", help="how the time was spent, by stage, over all starts")


def _configuration(parser: _Parser) -> None:
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="NAME or FILE, with :PRESET, such as iter2:micro; or --config=CONFIG",
    )
    parser.add_argument("--config", dest="config_option", metavar="CONFIG", help=argparse.SUPPRESS)
    parser.add_argument(
        "--config.FIELD=VALUE",
        dest="_field",
        action="store_true",
        help="changes a setting, such as --config.dpo.beta=0.2",
    )


def _changes(parser: _Parser) -> None:
    parser.add_argument(
        "--allow_config_changes",
        action="store_true",
        help="resume with changed settings, where no artifact depends on them",
    )


def _cache(parser: _Parser) -> None:
    parser.add_argument(
        "--compile_cache",
        help="folder of compiled programs, or gs://; empty: none (default: ~/.cache, or --workdir in a bucket)",
    )


def _model(parser: _Parser) -> None:
    parser.add_argument("--workdir", default="", help="the run")
    parser.add_argument(
        "--model",
        default="",
        help="model of the run (default: the last one); or, without --workdir, a Hugging Face folder or a hub id",
    )


def _sampling(parser: _Parser) -> None:
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (%(default)s)")
    parser.add_argument("--top_p", type=float, default=0.9, help="probability mass of nucleus sampling (%(default)s)")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="maximum tokens of a response (%(default)s)")
    parser.add_argument(
        "--max_length", type=int, default=0, help="maximum tokens of prompt and response (default: the model's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")


class Command(NamedTuple):
    """A command: what it does in a line, how it is used, and the function that adds its options."""

    summary: str
    usage: str
    add_options: Callable[[_Parser], None]


_COMMANDS = (
    ("run", "trains and evaluates the models of a run", "iter2:micro --workdir=runs/a", _run),
    ("check", "shows what a run would do, and what would stop it", "iter2 --workdir=runs/a", _check),
    ("evaluate", "evaluates trained models, head to head and as judges", "--workdir=runs/a", _evaluate),
    ("generate", "answers a file of prompts", "--workdir=runs/a --prompts=FILE --out=FILE", _generate),
    ("chat", "a conversation in the terminal", "--workdir=runs/a", _chat),
    ("export", "writes a Hugging Face folder, or preference pairs", "--workdir=runs/a --model=m3 --out=m3_hf", _export),
    ("report", "rewrites report.html of a run", "--workdir=runs/a", _report),
    ("explain", "shows the origin of a preference pair, or the time spent", "--workdir=runs/a --pair=m2/17", _explain),
    (
        "fits",
        "shows whether a run fits a TPU slice or GPUs, without them",
        "iter3:llama3_8b --topology=v5p:2x2x1",
        _fits,
    ),
)
COMMANDS = {name: Command(*rest) for name, *rest in _COMMANDS}
TAKES_CONFIG = ("run", "check", "fits")
# Options that have, or had, another name: what to write instead.
OTHER_WORDS = {
    "--interactive": f"`{PROGRAM} chat` is the command for a conversation",
    "--chat": "chat is the default where the model has a chat format; --raw is for text to continue",
    "--name": "--workdir names the run and --model the model of it",
    "--opponent_name": "it is --opponent_model",
    "--accept_changes": "it is --allow_config_changes",
    "--model_name_or_path": "it is --config.model.init for a run, and --model for the other commands",
    "--output_dir": "it is --workdir for a run, and --out for what other commands write",
    "--output": "it is --out",
    "--learning_rate": "it is --config.sft.lr and --config.dpo.lr",
    "--num_train_epochs": "it is --config.sft.epochs and --config.dpo.epochs",
    "--per_device_train_batch_size": "it is --config.sft.batch_size and --config.dpo.batch_size, over all devices",
    "--gradient_accumulation_steps": "it is --config.sft.grad_accum_steps and --config.dpo.grad_accum_steps",
    "--dataset_name": "it is --config.data.ift and --config.data.eft",
    "--bf16": "it is --config.model.dtype=bfloat16",
    "--model": "it is --config.model.init for a run",
    "--resume": "the same command resumes a run",
    "--resume_from_checkpoint": "the same command resumes a run",
    "--preset": "a preset follows the configuration: iter2:PRESET",
    "--push_to_hub": "it is --push=OWNER/NAME",
}


def overview() -> str:
    """The help of the program."""
    lines = [f"usage: {PROGRAM} COMMAND ...", ""]
    lines += [f"  {name:9s} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", f"{PROGRAM} COMMAND --help lists the options of a command."])


def command_help(name: str) -> str:
    """The help of a command: its options; for a run also configurations, presets and settings."""
    text = _parser(name).format_help()
    if name not in TAKES_CONFIG:
        return text
    summaries = "".join(f"  {preset:13s} {summary}\n" for preset, summary in SUMMARIES.items())
    presets = f"Configurations: {', '.join(files.names())}\nPresets:\n{summaries}"
    if name != "run":
        return f"{text}\n{presets}Settings: `{PROGRAM} run --help` lists them.\n"
    comments = field_comments()
    fields = [
        f"  {field}={value if value != '' else repr(value)}  # {comments[field]}"
        for field, value in flatten_config(default_config()).items()
    ]
    return "\n".join([text, f"{presets}\nSettings with the defaults of `tiny`:", *fields, ""])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, `command` among them; for a run also `fields`, the words that set single fields.

    Args:
      argv: the command and its options.

    Raises:
      ConfigError: the command or an option does not exist, or lacks its value.
    """
    name = argv[0]
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise ConfigError(f"{name!r} is not a command; {hint}commands: {', '.join(COMMANDS)}")
    parser, fields, words = _parser(name), [], list(argv[1:])
    if name in TAKES_CONFIG:
        fields, words = settings.split(words)
    for before, word in pairwise(["", *words]):
        option, equals, value = word.partition("=")
        if not equals or value:
            option = before if not word else ""
        if option.startswith("--") and option != "--compile_cache":
            raise ConfigError(f"{option} is empty: give it a value, or leave it out")
    known = {option for action in parser._actions for option in action.option_strings}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    if not unknown:
        options, unknown = parser.parse_known_args(words)
    if unknown:
        raise ConfigError(_explain_unknown(unknown[0], parser, name))
    if name in TAKES_CONFIG:
        if options.config and options.config_option:
            raise ConfigError(
                f"{options.config!r} and --config={options.config_option} are two configurations: give one"
            )
        options.config = options.config or options.config_option
        if not options.config:
            raise ConfigError(
                f"--config is missing: for example `{PROGRAM} {name} iter2`, or --config=configs/iter2.py"
            )
    for option in PATH_OPTIONS:
        if path := getattr(options, option, None):
            setattr(options, option, expand_home(path, f"--{option}"))
    return argparse.Namespace(**vars(options), command=name, fields=fields)


def _parser(name: str) -> _Parser:
    command = COMMANDS[name]
    description = (
        f"{command.summary[0].upper()}{command.summary[1:]}. For example:\n\n  {PROGRAM} {name} {command.usage}"
    )
    parser = _Parser(
        f"{PROGRAM} {name}",
        usage=f"{PROGRAM} {name} " + ("CONFIG[:PRESET] " if name in TAKES_CONFIG else "") + "[--OPTION=VALUE ...]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_options(parser)
    return parser


def _explain_unknown(word: str, parser: _Parser, command: str) -> str:
    option, _, value = word.partition("=")
    if not option.startswith("-"):
        return f"{word!r} is not an option; {_explain_word(word, command)}"
    if option in OTHER_WORDS:
        return f"{option} is not an option of {command}: {OTHER_WORDS[option]}"
    if command in TAKES_CONFIG:
        name, fields = option.lstrip("-"), list(flatten_config(default_config()))
        if matches := [field for field in fields if field == name] or [f for f in fields if f.endswith(f".{name}")]:
            written = " or ".join(f"--config.{field}={value or 'VALUE'}" for field in matches)
            return f"{option} is a setting: write {written}"
    known = [o for action in parser._actions for o in action.option_strings if o.startswith("--") and "." not in o]
    nearest = difflib.get_close_matches(option, known, n=1)
    hint = f"the nearest one is {nearest[0]}" if nearest else f"`{PROGRAM} {command} --help` lists them"
    return f"{option} is not an option of {command}; {hint}"


def _explain_word(word: str, command: str) -> str:
    if command not in TAKES_CONFIG:
        return f"for a run write --workdir={word}" if os.path.isdir(word) else "options begin with --"
    if word in PRESETS or word.partition(":")[0] in files.names():
        return "there is one configuration, such as iter2:micro, with its preset after the colon"
    return "options begin with --"
