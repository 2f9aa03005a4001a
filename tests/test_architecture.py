"""The layout is the architecture: who may import whom, and who may know Hydra."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "i2i_lightning"

# A room may import from its own and from lower floors; rooms of one floor do not import each other.
FLOORS = [
    {"types"},
    {"weights"},
    {"data", "networks", "losses"},
    {"methods", "editing", "checkpoints"},
    {"callbacks", "metrics", "loggers", "translation", "sampling", "strategies", "diagnosis"},
    {"sweeps"},
    {"config", "cli"},
    {"commands"},
]
NEIGHBOURS = {
    ("editing", "methods"): "an edit embeds as the inversion does",
    ("methods", "checkpoints"): "an inversion begins with the latents in files",
    ("callbacks", "metrics"): "a callback reports what a metric computes",
    ("callbacks", "loggers"): "a callback writes through a logger",
    ("callbacks", "sampling"): "a callback draws the sheets that people look at",
    ("callbacks", "strategies"): "a callback stops the run as its cluster wants",
    ("diagnosis", "loggers"): "the doctor says how a run would be logged",
    ("diagnosis", "callbacks"): "the doctor measures a step as a run does",
    ("cli", "config"): "the command line composes the config",
}
KNOW_HYDRA = {"config", "cli", "commands"}


def modules(checkout: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((checkout / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(checkout).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """Yield every module that ``tree`` imports anywhere, also inside of functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = name.split(".")[: -node.level]
                base = ".".join([*parent, base]).rstrip(".")
            yield base
            if base == PACKAGE:
                yield from (f"{base}.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def test_every_room_has_a_floor(checkout: Path) -> None:
    rooms = {room(name) for name, _ in modules(checkout)} - {None}
    unknown = rooms - set().union(*FLOORS)
    assert not unknown, f"say in FLOORS who may import {unknown}"


def test_imports_point_down(checkout: Path) -> None:
    wrong = []
    for name, tree in modules(checkout):
        here = room(name)
        for imported in imports(name, tree):
            there = room(imported)
            if here is None or there is None or there == here or there == "__version__":
                continue
            if floor(there) >= floor(here) and (here, there) not in NEIGHBOURS:
                wrong.append(f"{name} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_methods_do_not_import_each_other(checkout: Path) -> None:
    shared = {f"{PACKAGE}.methods.{name}" for name in ("base", "checks", "image_pool", "ranks", "schedules")}
    wrong = [
        f"{name} imports {imported}"
        for name, tree in modules(checkout)
        if room(name) == "methods"
        for imported in imports(name, tree)
        if imported.startswith(f"{PACKAGE}.methods.") and imported not in shared
        if imported.split(".")[:3] != name.split(".")[:3]  # one method may be several files
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_outside_knows_hydra(checkout: Path) -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, tree in modules(checkout)
        if room(name) not in KNOW_HYDRA
        for imported in imports(name, tree)
        if imported.split(".")[0] in ("hydra", "omegaconf")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_constructor_swallows_keywords(checkout: Path) -> None:
    wrong = [
        f"{name}.{node.name}"
        for name, tree in modules(checkout)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for function in node.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__" and function.args.kwarg
    ]
    assert not wrong, f"a misspelt option would pass silently: {wrong}"


def test_no_junk_drawer(checkout: Path) -> None:
    names = {path.stem for path in (checkout / PACKAGE).rglob("*.py")}
    assert not names & {"utils", "helpers", "misc", "common"}


@pytest.mark.parametrize("module", ["commands.train", "cli.help"])
def test_help_imports_nothing_heavy(checkout: Path, module: str) -> None:
    """What ``--help`` loads at import time: the standard library, PyYAML and modules of that kind."""
    light = {f"{PACKAGE}.{name}" for name in ("cli.app", "cli.folders", "cli.words", "cli.help", "cli")} | {
        PACKAGE
    }
    trees = dict(modules(checkout))
    top_level = ast.Module(
        [
            node
            for node in trees[f"{PACKAGE}.{module}"].body
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ],
        [],
    )
    for imported in imports(f"{PACKAGE}.{module}", top_level):
        assert imported in light or imported.split(".")[0] not in (
            PACKAGE,
            "torch",
            "lightning",
            "hydra",
            "omegaconf",
        )
