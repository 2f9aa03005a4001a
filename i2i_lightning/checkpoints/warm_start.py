"""Begin training from the weights of a file of any kind that can be read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from i2i_lightning.checkpoints.architecture import OPTIONS, Role, describe, differences, infer, plainly
from i2i_lightning.checkpoints.contents import SavedNetwork, read_contents
from i2i_lightning.types import UserError

DISCRIMINATORS = {"ab": "discriminator_b", "ba": "discriminator_a"}
"""Of a method with two: the one that judges the output of each direction. The reference's ``D_A`` is
``ab``."""


def warm_start(method: nn.Module, path: str | Path) -> str:
    """Load the weights of those networks of ``method`` that a file has.

    Optimisers, schedules and counts start afresh. An averaged network starts from the file's average or,
    where the file has none, from its current network.

    Args:
        method: The method to fill, freshly built.
        path: A checkpoint of this project, a safetensors file, a ``.pth`` of the reference, or a folder of
            the reference's ``latest_net_*.pth``.

    Returns:
        A line that says which networks were filled and which were not.

    Raises:
        UserError: If the file cannot be read, or one of its networks is not that of this method, naming the
            first weights that differ and the options that would fit. Nothing is filled then.
    """
    where = f"warm_start={path}"
    try:
        contents = read_contents(path)
    except UserError as error:
        raise UserError(f"warm_start: {error}") from error
    places: dict[str, SavedNetwork] = {}
    for network in contents.networks:
        place = _place(method, network, where)
        if place in places:
            raise UserError(
                f"{where}: it holds several networks for this method's {place}; give one of its files"
            )
        places[place] = network
    for place, network in places.items():
        _check_fits(getattr(method, place), place, network, where)
    averages = cast("Mapping[str, nn.Module]", getattr(method, "averages", None) or {})
    for place, network in places.items():
        getattr(method, place).load_state_dict(network.state)
        if place in averages:
            averages[place].load_state_dict(network.average or network.state)
    left = [name for name in _networks(method) if name not in places]
    anew = (
        f"; {', '.join(left)} not in the file, so {'they start' if len(left) > 1 else 'it starts'} anew"
        if left
        else ""
    )
    return f"{where}: filled {', '.join(places)}{anew}"


def _networks(method: nn.Module) -> list[str]:
    """Return the names of the method's generators and discriminators."""
    names = [*_generators(method).values(), *_discriminators(method)]
    return [name for name in names if isinstance(getattr(method, name, None), nn.Module)]


def _generators(method: nn.Module) -> Mapping[str, str]:
    directions: Any = getattr(method, "directions", None) or {"ab": "generator"}  # without inputs, one too
    return cast("Mapping[str, str]", directions)


def _discriminators(method: nn.Module) -> list[str]:
    names = ("discriminator", *DISCRIMINATORS.values())
    return [name for name in names if isinstance(getattr(method, name, None), nn.Module)]


def _place(method: nn.Module, network: SavedNetwork, where: str) -> str:
    """Return the attribute of ``method`` that ``network`` is to fill."""
    there = _networks(method)
    if network.name in there:
        return network.name
    names = _of_role(method, network.role)
    if len(set(names.values())) == 1:
        return next(iter(names.values()))
    if not names:
        raise UserError(f"{where}: it holds a {network.name}, and this method has {', '.join(there)} alone")
    if network.direction is None:
        name = f"latest_net_{'G' if network.role == 'generator' else 'D'}"
        raise UserError(
            f"{where}: the method has {' and '.join(names.values())}, and the file does not say which it is\n"
            f"name it {name}_A.pth for {names['ab']} or {name}_B.pth for {names['ba']}"
        )
    return names[network.direction]


def _of_role(method: nn.Module, role: Role) -> Mapping[str, str]:
    """Return the method's networks of ``role`` by direction."""
    if role == "generator":
        return _generators(method)
    names = _discriminators(method)
    return {"ab": names[0]} if len(names) == 1 else {d: n for d, n in DISCRIMINATORS.items() if n in names}


def _check_fits(network: nn.Module, place: str, saved: SavedNetwork, where: str) -> None:
    """Raise ``UserError`` unless every weight of ``network`` is in the file, of its shape, and no other."""
    wanted = network.state_dict()
    wrong = [
        f"{place}.{key} has shape {tuple(value.shape)}, this run's has {tuple(wanted[key].shape)}"
        for key, value in saved.state.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    wrong += [f"{place}.{key} is missing" for key in wanted if key not in saved.state]
    wrong += [f"{place}.{key} is not part of this run's" for key in saved.state if key not in wanted]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{where}: {wrong[0]}{more}\n{_what_would_fit(place, saved, wanted)}")


def _what_would_fit(place: str, saved: SavedNetwork, wanted: Mapping[str, Tensor]) -> str:
    """Say in what the file's network and this run's differ, and which options make them alike."""
    given, have = infer(saved.state), infer(wanted)
    keys = differences(given, have) if given is not None and have is not None else []
    if given is None or have is None or not keys:
        return "choose the generator, discriminator and method options it was trained with"
    if "_target_" in keys:
        return (
            f"the file's {place} is a {describe(given)}; this run's is a {describe(have)}\n"
            f"set {' '.join([OPTIONS[given['_target_']], *_settings(saved.role, given, list(given))])}"
        )
    channels = [key for key in keys if key.endswith("_channels") and key != "base_channels"]
    settings = _settings(saved.role, given, keys)
    remedy = [f"set {' '.join(settings)}"] if settings else []
    if channels:
        remedy.append(f"take data with {' and '.join(f'{key}={given[key]}' for key in channels)}")
    return (
        f"the file's is a {plainly(given, keys)}; this run's has "
        f"{', '.join(f'{key}={have.get(key)}' for key in keys)}: {', and '.join(remedy)}"
    )


def _settings(role: Role, architecture: Mapping[str, Any], keys: list[str]) -> list[str]:
    """Return the words of a command line that set ``keys`` of a network as in ``architecture``."""
    hidden = ("_target_", "in_channels", "out_channels", "dropout", "z_channels")
    words = {key: str(value).lower() for key, value in architecture.items()}
    return [f"{role}.{key}={words[key]}" for key in keys if key not in hidden]
