"""python -m selfreward_jax COMMAND ...

run       trains and evaluates the models of a run
evaluate  evaluates trained models, head to head and as judges
generate  generates responses to a prompt file, or chats
export    writes a model as a Hugging Face folder, or preference pairs for TRL
explain   shows where a preference pair comes from, or how time was spent
report    rewrites report.html of a run
fits      shows whether a run fits a TPU slice
"""

import importlib
import sys

COMMANDS = {
    "run": "selfreward_jax.main",
    "evaluate": "selfreward_jax.cli.evaluate",
    "generate": "selfreward_jax.cli.generate",
    "export": "selfreward_jax.cli.export",
    "explain": "selfreward_jax.cli.explain",
    "report": "selfreward_jax.cli.report",
    "fits": "selfreward_jax.cli.fits",
}


def main(argv: list[str]) -> int:
    """Runs a command. Returns the exit code."""
    name = argv[1] if len(argv) > 1 else ""
    if name in ("", "-h", "--help"):
        print(f"{__doc__}\nEvery command has --help.")
        return 0
    if name not in COMMANDS:
        print(f"selfreward_jax: {name!r} is not a command; commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS[name]).main([f"selfreward_jax {name}", *argv[2:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
