"""From an exception to the one to three lines that its user can act on."""

from __future__ import annotations

import errno
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from i2i_lightning.cli import arguments
from i2i_lightning.cli.check import describe
from i2i_lightning.cli.folders import group_names, group_options
from i2i_lightning.cli.words import closest, did_you_mean, natural, no_such_key
from i2i_lightning.config import SCHEMAS, RunConfig
from i2i_lightning.types import UserError

MAX_LINES = 3
MAX_LINE_LENGTH = 400
MACHINE_SAYS_NO = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ESTALE,
    errno.ENAMETOOLONG,
)
DEAD_WORKER = re.compile(r"DataLoader worker \(pid\S* [\d, ]+\) (?:is killed by signal: ([^.]+)|exited)")
TRACEBACK = "Traceback (most recent call last):"
BOOKKEEPING = ("full_key:", "object_type=", "reference_type=", "Set the environment variable")


def explain(error: BaseException, overrides: Sequence[str], conf: Path, config_name: str) -> str | None:
    """Return what to print for ``error`` if it is a user's slip; None if it looks like a bug.

    Args:
        error: What was raised while composing, checking or running.
        overrides: The overrides in force.
        conf: Folder of the config files.
        config_name: Name of the root config.
    """
    if (there := _raised_elsewhere(str(error))) is not None:
        return explain(there, overrides, conf, config_name)
    for link in _chain(error):
        if isinstance(link, UserError):
            return trim(str(link))
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        where = f"{error.problem_mark.name}, line {error.problem_mark.line + 1}"
        return trim(f"{where}: not valid YAML: {error.problem}")
    if isinstance(error, MissingConfigException):
        return trim(_missing_config(error, overrides, conf))
    if isinstance(error, OverrideParseException):
        return trim(_unreadable(error))
    if isinstance(error, ConfigCompositionException):
        return trim(_composition(error, overrides, conf, config_name))
    if isinstance(error, InstantiationException):
        return _instantiation(error)
    if isinstance(error, (OmegaConfBaseException, CompactHydraException)):
        return trim(_omegaconf(error))
    if isinstance(error, HydraException) or type(error).__name__ == "MisconfigurationException":
        return trim(str(error))
    if type(error).__name__ == "OutOfMemoryError":
        return trim(f"out of GPU memory: lower data.batch_size or data.crop_px\n{str(error).splitlines()[0]}")
    if isinstance(error, OSError) and error.errno in MACHINE_SAYS_NO:
        return trim(f"{error.filename or 'outputs'}: {error.strerror}")
    if (worker := DEAD_WORKER.search(str(error))) is not None:
        return trim(_dead_worker(worker[1]))
    if isinstance(error, ValueError) and _raised_in(error).startswith("torch.optim."):
        return trim(f"optimizer: {error}")
    return None


def _raised_elsewhere(text: str) -> BaseException | None:
    """Return what was raised in a data loader's worker, or in a spawned process, that told it as ``text``.

    Both hand over the traceback as text, and its last part ends with the exception; None for anything else.
    """
    head, _, tail = text.rpartition(TRACEBACK)
    if not tail or not ("DataLoader worker process" in head or "-- Process " in head):
        return None
    lines = tail.strip("\n").splitlines()
    # Frames are indented, the exception is not; its own further lines may be.
    first = next((index for index, line in enumerate(lines) if not line.startswith(" ")), None)
    if first is None:
        return None
    name, _, rest = "\n".join(lines[first:]).partition(": ")
    module, _, attribute = name.rpartition(".")
    kind = getattr(sys.modules.get(module or "builtins"), attribute, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return None
    if issubclass(kind, OSError) and (parts := re.match(r"\[Errno (\d+)\] ([^:]*)(?:: '(.*)')?", rest)):
        return OSError(int(parts[1]), parts[2], parts[3])
    try:
        return kind(rest)
    except TypeError:  # takes other arguments
        return None


def _dead_worker(signal_name: str | None) -> str:
    """Word that a process of the data loader died."""
    if signal_name == "Bus error":
        return (
            "a worker of the data loader died for want of shared memory: enlarge /dev/shm, or take "
            "data.num_workers=0"
        )
    how = f"was killed ({signal_name})" if signal_name else "ended unexpectedly"
    return f"a worker of the data loader {how}; if memory is short, take fewer: data.num_workers=1, or 0"


def _raised_in(error: BaseException) -> str:
    """Return the name of the module that raised ``error``."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def trim(text: str) -> str:
    """Return ``text`` as at most three lines of bearable length, without OmegaConf's bookkeeping lines."""
    lines = [line.rstrip() for line in text.splitlines()]
    kept = [line for line in lines if line.strip() and not line.strip().startswith(BOOKKEEPING)][:MAX_LINES]
    return "\n".join(
        line if len(line) <= MAX_LINE_LENGTH else line[: MAX_LINE_LENGTH - 3] + "..." for line in kept
    )


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _missing_config(error: MissingConfigException, overrides: Sequence[str], conf: Path) -> str:
    """A group's option, a whole group, or a file named in some defaults list does not exist."""
    wanted = error.missing_cfg_file or ""
    group, _, option = wanted.rpartition("/")
    if not group:
        return str(error)
    options = sorted(error.options or group_options(conf, group), key=natural)
    asked = any(arguments.split_override(word) == (group, option) for word in overrides)
    origin = "" if asked else " (asked for by a config file)"
    hint = did_you_mean(option, options)
    return f"{group}={option}: no such option{origin}.{hint}\n{group}: {', '.join(options)}"


def _unreadable(error: OverrideParseException) -> str:
    """Hydra's grammar cannot read an override."""
    word = error.override or ""
    return (
        f"{word}: cannot read this value; quote text that holds = , ( ) [ ] {{ }} or spaces: {_quoted(word)}"
    )


def _quoted(word: str) -> str:
    key, value = arguments.split_override(word)
    return f'''"{key}={arguments.quote(value or "")}"'''


def _composition(
    error: ConfigCompositionException, overrides: Sequence[str], conf: Path, config_name: str
) -> str:
    text = str(error)
    if text.startswith("Ambiguous value"):
        word = (re.search(r"'(.*)'", text) or [""])[1]
        return f"{word}: several values mean a sweep; add --multirun, or quote one value: {_quoted(word)}"
    if place := re.match(r"In '([^']+)': \w+ raised while composing config:\s*(.*)", text, flags=re.DOTALL):
        return f"conf/{place[1]}.yaml: {_key_error(place[2], overrides, conf, config_name)}"
    for word in overrides:
        key, value = arguments.split_override(word)
        key = key.lstrip("~")
        if f"'{key}'" in text or f"{key}=" in text or f" {word}" in text or f"'{key.split('@')[0]}'" in text:
            return _refused(word, key, value, error, overrides, conf, config_name)
    return _key_error(text, overrides, conf, config_name)


def _refused(
    word: str,
    key: str,
    value: str | None,
    error: Exception,
    overrides: Sequence[str],
    conf: Path,
    config_name: str,
) -> str:
    """Word why Hydra refused the override ``word``: there is no such key, or the value does not fit."""
    if key.startswith("hydra."):
        return f"{word}: Hydra has no such setting, or does not take this value; see --cfg hydra"
    skeleton = _skeleton(overrides, conf, config_name)
    if skeleton is not None and not _exists(skeleton, key):
        return unknown_key(key, skeleton, _groups_of(config_name, conf))
    hints = typing.get_type_hints(SCHEMAS.get(config_name, RunConfig))
    if key in hints and hints[key] is not Any:
        return f"{key}={value}: give {describe(hints[key])}"
    return f"{word}: {_first_line(str(error.__cause__ or error))}"


def _key_error(text: str, overrides: Sequence[str], conf: Path, config_name: str) -> str:
    """Word an error in a config file: OmegaConf names the key on the lines below."""
    full_key = re.search(r"full_key: (\S+)", text)
    first = _first_line(text)
    if full_key is None:
        return first
    skeleton = _skeleton(arguments.chosen_groups(overrides, ["method", "data"]), conf, config_name)
    key = full_key[1]
    if skeleton is None or _exists(skeleton, key):
        return f"{key}: {first}"
    return unknown_key(key, skeleton, _groups_of(config_name, conf))


def _groups_of(config_name: str, conf: Path) -> list[str]:
    """Return the groups that the command with this root config knows: all of them where it trains."""
    schema = SCHEMAS.get(config_name, RunConfig)
    keys = typing.get_type_hints(schema)
    return [group for group in group_names(conf) if schema is RunConfig or group in keys]


def unknown_key(key: str, config: DictConfig, groups: Sequence[str]) -> str:
    """Return the message for a ``key`` that ``config`` does not have, with what it does have.

    The key may be misspelt, or stand in the wrong place: ``lambda_l1`` for ``loss.lambda_l1``.
    """
    node, known = config, ""
    parts = key.split(".")
    for part in parts:
        child = _child(node, part)
        if not isinstance(child, DictConfig):
            break
        node, known = child, f"{known}.{part}" if known else part
    rest = key[len(known) :].lstrip(".")
    siblings = [str(name) for name in node]
    leaves = _leaves(config)
    if closest(rest, siblings) is None:
        elsewhere = [path for path in leaves if path.rpartition(".")[2] == parts[-1]]
        if not elsewhere and (leaf := closest(parts[-1], [path.rpartition(".")[2] for path in leaves])):
            elsewhere = [path for path in leaves if path.endswith(f".{leaf}")]
        if elsewhere:
            return f"{key}: no such key. Did you mean {' or '.join(elsewhere[:3])}?"
    return no_such_key(known, rest, siblings if known else {*siblings, *groups})


def _child(node: DictConfig, name: str) -> Any:
    try:
        return node.get(name)
    except (OmegaConfBaseException, ValueError):
        return None


def _exists(config: DictConfig, key: str) -> bool:
    node: Any = config
    for part in key.split("."):
        if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, DictConfig) and part in list(node):
            node = _child(node, part)
        else:
            return False
    return True


def _leaves(config: DictConfig, prefix: str = "") -> list[str]:
    paths: list[str] = []
    for name in map(str, config):
        if OmegaConf.is_interpolation(config, name) and prefix == "method.":
            continue  # method.generator is the root's generator: name each key once
        child = _child(config, name)
        paths += _leaves(child, f"{prefix}{name}.") if isinstance(child, DictConfig) else [f"{prefix}{name}"]
    return paths


def _skeleton(overrides: Sequence[str], conf: Path, config_name: str) -> DictConfig | None:
    """Compose the config with the chosen groups alone, to see which keys there are."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    choices = arguments.chosen_groups(overrides, group_names(conf))
    for attempt in (choices, []):
        try:
            with initialize_config_dir(str(conf), version_base="1.3"):
                return compose(config_name, overrides=attempt)
        except (HydraException, OmegaConfBaseException):
            continue
    return None


def _instantiation(error: InstantiationException) -> str | None:
    """Word what a constructor raised. Wrong values are slips; anything else is a bug."""
    cause = error.__cause__
    key = re.search(r"full_key: (\S+)", str(error))
    slip = isinstance(cause, (ValueError, TypeError)) or type(cause).__name__ == "MisconfigurationException"
    if cause is None or not slip:
        return trim(_omegaconf(error)) if cause is None else None
    return trim(f"{key[1] if key else 'config'}: {cause}")


def _omegaconf(error: BaseException) -> str:
    key = re.search(r"full_key: (\S+)", str(error))
    cause = error.__cause__ or error.__context__
    first = _first_line(str(cause if isinstance(cause, ValueError) else error))
    return f"{key[1]}: {first}" if key and key[1] not in first else first


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else ""
