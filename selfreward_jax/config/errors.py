"""What a program answers with one line and exit code 2."""


class InputError(Exception):
    """What the user gave cannot be used. The message is one line that names the field, its value and the remedy."""


class ConfigError(InputError, ValueError):
    """A setting or an option that cannot work."""
