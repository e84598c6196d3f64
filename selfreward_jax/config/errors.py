"""What a program answers with one line and exit code 2."""

from typing import Any


class InputError(Exception):
    """What the user gave cannot be used. The message is one line that names the field, its value and the remedy."""


class ConfigError(InputError, ValueError):
    """A setting or an option that cannot work."""


def refusal(field: str, value: Any, requirement: str, remedy: str) -> ConfigError:
    """The error of a setting that must be something else."""
    return ConfigError(f"{field} is {value!r}; it must be {requirement}: {remedy}")


def brief(value: Any) -> str:
    """A value in a message: printable, on one line, at most 60 characters."""
    if isinstance(value, int) and abs(value) >= 10**30:  # to write it out may take long
        return f"an integer of {value.bit_length()} bits"
    text = " ".join(ascii(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
