"""From a shell's words to Hydra's: flags told from overrides, and file names quoted."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from i2i_lightning.cli.words import closest
from i2i_lightning.types import UserError

VALUE_FLAGS = {
    "--cfg": "-c",
    "--package": "-p",
    "--config-path": "-cp",
    "--config-name": "-cn",
    "--config-dir": "-cd",
}
PLAIN_FLAGS = {"--multirun": "-m", "--run": "-r", "--resolve": "", "--hydra-help": ""}
CFG_TOPICS = ("job", "hydra", "all")
INFO_TOPICS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")

PATH_KEY = re.compile(
    r"(resume|warm_start|run|checkpoint|input|output|weights|(.*[._])?(root|dir|folder|file|path)(_[ab])?)"
)
"""Keys whose value names a file or folder, and is taken literally."""


@dataclass(frozen=True)
class Arguments:
    """A command line taken apart: ``overrides`` in their order, and Hydra's ``flags`` with their values."""

    overrides: list[str]
    flags: list[str]

    @property
    def multirun(self) -> bool:
        """Whether this is a sweep."""
        return "--multirun" in self.flags or "-m" in self.flags

    @property
    def chooses_mode(self) -> bool:
        """Whether a flag says what Hydra is to do: sweep, run, or show something."""
        names = {flag.partition("=")[0] for flag in self.flags}
        shows = {"--cfg", "-c", "--info", "-i", "--hydra-help"}
        return self.multirun or bool(names & {"--run", "-r", *shows})

    def value(self, key: str) -> str | None:
        """Return the value of the last override of ``key`` as plain text; None if absent or ``null``."""
        values = [value for name, value in map(split_override, self.overrides) if name == key]
        return None if not values or values[-1] in (None, "null") else unquote(values[-1] or "")

    def hydra_argv(self) -> list[str]:
        """Return the words for Hydra's parser, which wants its positional arguments in one piece."""
        return [*self.overrides, *self.flags]


def parse(argv: Sequence[str], groups: Iterable[str]) -> Arguments:
    """Take ``argv`` (without the program's name) apart and quote the file names in it.

    Args:
        argv: Words as the shell passed them.
        groups: Names of the config groups, for suggestions.

    Raises:
        UserError: On an unknown flag, or a word that is neither a flag nor ``key=value``.
    """
    overrides: list[str] = []
    flags: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name = word.split("=", 1)[0]
        if name in ("--info", "-i"):
            flags.append(word)
            if "=" not in word and words and words[0] in INFO_TOPICS:
                flags.append(words.pop(0))
        elif name in VALUE_FLAGS or name in VALUE_FLAGS.values():
            flags.append(word)
            if "=" not in word:
                flags.append(words.pop(0) if words else "")
            value = word.partition("=")[2] or flags[-1]
            if name in ("--cfg", "-c") and value not in CFG_TOPICS:
                raise UserError(f"{name} {value}".rstrip() + f": give one of {', '.join(CFG_TOPICS)}")
            if not value:
                raise UserError(f"{name}: give it a value; see --help")
        elif word in PLAIN_FLAGS or word in PLAIN_FLAGS.values():
            flags.append(word)
        elif word.startswith("-"):
            raise UserError(_unknown_flag(word))
        else:
            overrides.append(word)
    multirun = "--multirun" in flags or "-m" in flags
    return Arguments([_checked(word, multirun, groups) for word in overrides], flags)


def _unknown_flag(word: str) -> str:
    name, _, value = word.lstrip("-").partition("=")
    known = [*VALUE_FLAGS, *PLAIN_FLAGS, "--info", "--help", "--version"]
    if word.startswith("--") and (close := closest(word, known)):
        return f"{word}: no such flag. Did you mean {close}?"
    example = f"{name.replace('-', '_')}={value or '...'}" if len(name) > 1 else "trainer.max_epochs=10"
    flags = ", ".join(known)
    return f"{word}: no such flag; settings are written key=value, without dashes: {example}\nFlags: {flags}"


def _checked(word: str, multirun: bool, groups: Iterable[str]) -> str:
    """Return the override ``word`` as Hydra wants it: file names quoted, everything else untouched."""
    key, value = split_override(word)
    if value is None:
        if word.startswith("~"):
            return word
        if not re.fullmatch(r"[\w.@/+]+", word):
            raise UserError(f"{word!r}: settings are written key=value, without spaces around the =")
        key = closest(word, groups) or word
        hint = f"; is this data.root={word}?" if os.path.exists(word) else f": {key}=..."
        raise UserError(f"{word}: settings are written key=value, without spaces around the ={hint}")
    if not key:
        raise UserError(f"{word!r}: settings are written key=value, without spaces around the =")
    if not is_path_key(key):
        return word
    prefix = word[: word.index("=") + 1]
    if (
        multirun
        and "," in value
        and quote_path(value) != value
        and not os.path.exists(os.path.expanduser(value))
    ):
        return prefix + ",".join(quote_path(part) for part in value.split(","))
    return prefix + quote_path(value)


def name_generator(parsed: Arguments) -> None:
    """Let ``generator=`` name a file: as a key of its own, ``generator.path``.

    For commands that load a generator. Hydra would look for an option of the group of that name.
    """
    words = []
    for word in parsed.overrides:
        key, value = split_override(word)
        is_named = key == "generator" and value is not None
        words.append(_checked(f"generator.path={value}", parsed.multirun, ()) if is_named else word)
    parsed.overrides[:] = words


def take_as_text(parsed: Arguments, keys: Container[str]) -> None:
    """Quote values of ``keys`` that hold commas, so that ``seeds=1,5,7-9`` is one list and no sweep.

    With ``--multirun`` commas mean a sweep, as everywhere.
    """
    if parsed.multirun:
        return
    for index, word in enumerate(parsed.overrides):
        key, value = split_override(word)
        if key in keys and value is not None and re.fullmatch(r"[\w-]+(\s*,\s*[\w-]+)+", value):
            parsed.overrides[index] = word[: word.index("=") + 1] + quote(value)


def split_override(word: str) -> tuple[str, str | None]:
    """Return ``(key, value)`` of ``word``, without the key's ``+``; without ``=`` the value is None."""
    key, equals, value = word.partition("=")
    return key.lstrip("+"), value if equals else None


def is_path_key(key: str) -> bool:
    """Return whether the value of ``key`` names a file or folder."""
    return PATH_KEY.fullmatch(key) is not None


def quote_path(value: str) -> str:
    """Return ``value`` so that Hydra's grammar reads it as one string, whatever characters it holds.

    What is quoted already, ``null`` and Hydra's sweep functions pass through. ``~`` becomes the home folder,
    which a shell leaves alone behind an ``=``.
    """
    for_hydra = is_quoted(value) or re.fullmatch(r"(choice|glob)\(.*\)", value)
    if value in ("", "null") or (for_hydra and not os.path.exists(value)):
        return value
    return quote(os.path.expanduser(value))


def is_quoted(value: str) -> bool:
    """Return whether ``value`` is one string in Hydra's quotes."""
    return re.fullmatch(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", value, flags=re.DOTALL) is not None


def quote(text: str) -> str:
    """Return ``text`` as a single-quoted string of Hydra's grammar.

    A backslash is special only in front of a quote, the closing one included.
    """
    escaped = re.sub(r"(\\*)(')", lambda match: match[1] * 2 + "\\'", text)
    return "'" + re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped) + "'"


def unquote(value: str) -> str:
    """Return the text of a value as ``quote`` writes it; an unquoted value is its own text."""
    if not is_quoted(value):
        return value
    inner, mark = value[1:-1], value[0]
    text = re.sub(rf"(\\+){mark}", lambda match: "\\" * (len(match[1]) // 2) + mark, inner)
    return re.sub(r"(\\+)$", lambda match: "\\" * (len(match[1]) // 2), text)


def chosen_groups(overrides: Iterable[str], groups: Iterable[str]) -> list[str]:
    """Return the overrides that choose an option of a config group, such as ``data=paired``."""
    names = set(groups)
    return [word for word in overrides if split_override(word)[0].lstrip("~").split("@")[0] in names]
