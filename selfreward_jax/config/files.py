"""Configurations by path or by name: configs/iter2.py:micro, or iter2:micro from anywhere."""

import difflib
import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from selfreward_jax.config.errors import ConfigError
from selfreward_jax.config.overrides import with_default_types
from selfreward_jax.config.presets import PRESETS

PACKAGE = Path(__file__).parents[1]
# In an installed package, and in a clone.
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")


def names() -> list[str]:
    """The configurations that have a name, such as "iter2" and "ablations/no_eft"."""
    folder = _folder()
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.py")) if folder else []


def load(spec: str) -> ConfigDict:
    """The settings of a configuration, FILE[:PRESET] or NAME[:PRESET].

    Args:
      spec: a path of a Python file with `get_config`, or a name of `names()`; then optionally a preset.

    Raises:
      ConfigError: there is no such file, name or preset, or the file does not load.
    """
    name, colon, preset = spec.partition(":")
    if colon and not preset:
        raise ConfigError(f"config is {spec!r}, with an empty preset: name one after the colon, or leave the colon out")
    path = find(name)
    try:
        module_spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        cfg = module.get_config(preset) if preset else module.get_config()
        if not isinstance(cfg, ConfigDict):
            raise TypeError(f"get_config returned {type(cfg).__name__}, not ConfigDict")
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a configuration file is a program: it can fail in any way, or end the process
        line = " ".join(str(error).split())
        raise ConfigError(f"config {name!r} does not load: {type(error).__name__}: {line}") from None
    return with_default_types(cfg, f"config {name!r}").lock()


def find(name: str) -> Path:
    """The file of a configuration.

    Raises:
      ConfigError: there is none.
    """
    if Path(name).is_file():
        if not name.endswith(".py"):
            raise ConfigError(f"config is {name!r}; it must be a Python file (.py) with get_config, or a name")
        return Path(name)
    known, folder = names(), _folder()
    wanted = name.removeprefix("configs/").removesuffix(".py")
    if folder and wanted in known:
        return folder / f"{wanted}.py"
    nearest = difflib.get_close_matches(wanted, known, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    if name in PRESETS:
        hint = f"{name} is a preset: write iter2:{name}; "
    raise ConfigError(f"config is {name!r}, and there is no such file; {hint}by name there are {', '.join(known)}")


def _folder() -> Path | None:
    return next((folder for folder in FOLDERS if (folder / "iter2.py").is_file()), None)
