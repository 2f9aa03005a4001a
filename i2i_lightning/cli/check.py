"""Check a composed config against the constructors it names, before anything is built.

Hydra checks what a schema declares; this walk checks the rest: a node with a ``_target_`` has only keys that
the target's signature knows, all that it requires, and values of the annotated types.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from i2i_lightning.cli.words import did_you_mean, no_such_key
from i2i_lightning.config import RunConfig
from i2i_lightning.types import UserError

TARGET_PREFIXES = ("i2i_lightning.", "torch.", "torchvision.", "lightning.")
"""Where a ``_target_`` may point: a config file cannot call anything else."""

HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}

INSTEAD = {
    "trainer.callbacks": "the callbacks group",
    "trainer.logger": "the logger group",
    "trainer.default_root_dir": "hydra.run.dir",
    "trainer.gradient_clip_val": "method.clip_norm",
    "trainer.gradient_clip_algorithm": "method.clip_norm",
    "trainer.accumulate_grad_batches": "method.accumulate_batches",
}
"""Arguments that no config may hold, because the command passes them or manual optimisation refuses them."""

MAX_SEED = 2**32 - 1
NAMED_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

MAPPINGS = ("callbacks", "logger")
"""Groups that map names to nodes, rather than being one node."""


def check_config(config: DictConfig, schema: type[Any] = RunConfig) -> None:
    """Check the whole ``config``.

    Args:
        config: What was composed.
        schema: The dataclass of the command's root keys.

    Raises:
        UserError: On the first unknown key, missing value, wrong type or forbidden target, naming its key.
    """
    _check_root(config, schema)
    nodes = list(_nodes_with_target(config, ""))
    for path, node in nodes:
        _check_keys(path, node)
    for path, node in [("", config), *nodes]:
        for key in node:
            if not OmegaConf.is_interpolation(node, str(key)) and OmegaConf.is_missing(node, key):
                raise UserError(_missing(path, str(key), node))
    for referring in (False, True):  # a wrong value is named where it stands, not where another refers to it
        for path, node in nodes:
            _check_values(path, node, referring)


def _check_root(config: DictConfig, schema: type[Any]) -> None:
    hints = typing.get_type_hints(schema)
    for key in config:
        if key not in hints:
            raise UserError(no_such_key("", str(key), hints))
        if hints[str(key)] is not Any and not OmegaConf.is_missing(config, key):
            _check_type(str(key), config[key], hints[str(key)])
    if "seed" in hints and not OmegaConf.is_missing(config, "seed") and not 0 <= config.seed <= MAX_SEED:
        raise UserError(f"seed={config.seed}: give a whole number from 0 to {MAX_SEED}")
    for group in MAPPINGS:
        for name, node in (config.get(group) or {}).items():
            if isinstance(node, DictConfig) and node and "_target_" not in node:
                others = [str(other) for other in config[group] if other != name]
                raise UserError(no_such_key(group, str(name), others))


def _nodes_with_target(node: Any, path: str) -> Iterable[tuple[str, DictConfig]]:
    """Yield every node with a ``_target_`` and its dotted path. References to other nodes are left out."""
    if isinstance(node, DictConfig) and not node._is_none():
        if node.get("_target_") is not None:
            yield path, node
        keys: Iterable[Any] = list(node)
    elif isinstance(node, ListConfig) and not node._is_none():
        keys = range(len(node))
    else:
        return
    for key in keys:
        if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
            child = node._get_node(key)
            yield from _nodes_with_target(child, f"{path}.{key}" if path else str(key))


def _check_keys(path: str, node: DictConfig) -> None:
    target = load_target(path, str(node["_target_"]))
    parameters = {name: p for name, p in _parameters(target).items() if f"{path}.{name}" not in INSTEAD}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    named = [name for name, p in parameters.items() if p.kind in NAMED_KINDS]
    for key in map(str, node):
        if f"{path}.{key}" in INSTEAD:
            raise UserError(f"{path}.{key}: not to be set here; use {INSTEAD[f'{path}.{key}']}")
        if key not in HYDRA_KEYS and key not in named and not takes_any:
            raise UserError(no_such_key(path, key, named))
    if node.get("_partial_"):
        return  # the rest is passed by whoever calls the partial
    for name in named:
        if parameters[name].default is inspect.Parameter.empty and name not in node:
            raise UserError(f"{path}.{name}: {target.__name__} needs it; give it a value: {path}.{name}=...")


def _check_values(path: str, node: DictConfig, referring: bool) -> None:
    """Check the values of ``node`` that refer to other keys, or those that do not."""
    target = load_target(path, str(node["_target_"]))
    hints = _type_hints(target)
    for key in node:
        if key in hints and key not in HYDRA_KEYS and OmegaConf.is_interpolation(node, key) == referring:
            where = f"{path}.{key}"
            try:
                value = node[key]
            except OmegaConfBaseException as error:
                raise UserError(f"{where}: {_reason(error)}") from error
            _check_type(where, value, hints[str(key)])


def load_target(path: str, name: str) -> Callable[..., Any]:
    """Import the class or function ``name`` that the node at ``path`` names.

    Raises:
        UserError: If it does not exist, or lies outside of what a config may call.
    """
    key = f"{path}._target_={name}"
    if not name.startswith(TARGET_PREFIXES):
        allowed = ", ".join(prefix + "*" for prefix in TARGET_PREFIXES)
        raise UserError(f"{key}: a config may only name {allowed}")
    module_name, _, attribute = name.rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise UserError(f"{key}: no module named {error.name}") from error
    except AttributeError as error:
        names = [n for n in dir(importlib.import_module(module_name)) if not n.startswith("_")]
        raise UserError(
            f"{key}: {module_name} has no {attribute}.{did_you_mean(attribute, names)}"
        ) from error
    if not callable(target):
        raise UserError(f"{key}: this is not a class or function")
    return typing.cast("Callable[..., Any]", target)


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except ValueError:  # compiled code without a signature
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


def _type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of the target's arguments, as far as they can be resolved."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # an annotation that exists for type checkers only
        return {}
    hints.pop("return", None)
    return hints


# Types.


def _check_type(path: str, value: Any, hint: Any) -> None:
    if not fits(value, hint):
        shown = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        raise UserError(f"{path}={shown!r}: give {describe(hint)}".replace("=None:", "=null:"))


def fits(value: Any, hint: Any) -> bool:
    """Return whether the config value ``value`` may become an argument annotated as ``hint``.

    Only what a YAML file can hold is judged: numbers, text, booleans, lists and mappings. A node with a
    ``_target_`` becomes an object that is not there yet, and passes wherever an object is expected.
    """
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return any(value == argument and type(value) is type(argument) for argument in arguments)
    if origin is typing.Annotated:
        return fits(value, arguments[0])
    if hint in (None, type(None)):
        return value is None
    if value is None:
        return not _is_plain(hint) and not inspect.isclass(origin or hint)
    if isinstance(value, (DictConfig, dict)):
        if "_target_" in value:
            return hint not in (bool, int, float, str)
        return not _is_plain(hint) and (origin or hint) not in (list, tuple, set, Sequence)
    if isinstance(value, (ListConfig, list)):
        return _list_fits(list(value), origin or hint, arguments)
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint in (str, Path):
        return isinstance(value, str)
    if (origin or hint) is typing.get_origin(typing.Iterable[int]) or origin is Sequence:
        return False  # text is no list, though Python would iterate over its letters
    if inspect.isclass(origin or hint) and isinstance(value, (bool, int, float, str)):
        return isinstance(value, origin or hint)
    return True


def _list_fits(items: list[Any], container: Any, arguments: tuple[Any, ...]) -> bool:
    if not inspect.isclass(container):
        return not _is_plain(container)
    if container is tuple and arguments and arguments[-1] is not Ellipsis:
        return len(items) == len(arguments) and all(map(fits, items, arguments))
    if not issubclass(list, container) and container not in (tuple, set):
        return False
    element = arguments[0] if arguments else Any
    return all(fits(item, element) for item in items)


def _is_plain(hint: Any) -> bool:
    return hint in (bool, int, float, str, Path) or typing.get_origin(hint) is Literal


def describe(hint: Any) -> str:
    """Return ``hint`` in words: ``true or false``, ``a whole number``, ``train or eval`` ..."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        some = [argument for argument in arguments if argument is not type(None)]
        plain = [
            argument for argument in some if _is_plain(argument) or typing.get_origin(argument) is not None
        ]
        literals = [str(value) for part in some for value in _literals(part)]
        words = [describe(part) for part in plain or some if not _literals(part)]
        null = ["null"] if type(None) in arguments else []
        return " or ".join(dict.fromkeys([*literals, *words, *null]))
    if origin is Literal:
        return " or ".join(str(argument) for argument in arguments)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}, each {describe(arguments[0])}"
    if origin in (tuple, set) or (inspect.isclass(origin) and issubclass(list, origin)):
        return f"a list, each item {describe(arguments[0])}" if arguments else "a list"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return names.get(hint) or f"a node whose _target_ makes a {getattr(hint, '__name__', hint)}"


def _literals(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


# Words.


def _missing(path: str, key: str, node: DictConfig) -> str:
    """Word the message for a mandatory value that nobody gave, with the constructor's own words on it."""
    full = f"{path}.{key}" if path else key
    says = argument_doc(load_target(path, str(node["_target_"])), key) if path else ""
    return f"{full}: missing; give it a value: {full}=..." + (f"\n{key}: {says}" if says else "")


def argument_doc(target: Callable[..., Any], name: str) -> str:
    """Return what the Google-style docstring of ``target`` says about its argument ``name``, on one line."""
    text: list[str] = []
    depth = 0
    for line in (inspect.getdoc(target) or "").splitlines():
        indent, stripped = len(line) - len(line.lstrip()), line.strip()
        if not text and stripped.startswith((f"{name}:", f"{name} (")):
            text, depth = [stripped.partition(":")[2].strip()], indent
        elif text and stripped and indent > depth:
            text.append(stripped)
        elif text:
            break
    return re.sub(r":\w+:`~?([^`]*)`|``", lambda role: (role[1] or "").rpartition(".")[2], " ".join(text))


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong, without OmegaConf's words around it."""
    first = str(error).strip().splitlines()[0]
    if re.search(r"Interpolation key 'data\.(in|out)_channels' not found", first):
        return (
            "this data has images of one side alone, and nothing to translate from; take data=paired or "
            "data=unpaired, or method=stylegan2"
        )
    return re.sub(r"^\w+ raised while resolving interpolation: ", "", first)
