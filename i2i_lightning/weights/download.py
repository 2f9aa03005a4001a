"""Fetching one pinned file over HTTPS: resumed where it broke off, checked, and never more than it should be.

Proxies come from ``https_proxy``, ``http_proxy`` and ``no_proxy``; certificates from ``SSL_CERT_FILE``,
``SSL_CERT_DIR``, ``PIP_CERT``, ``REQUESTS_CA_BUNDLE`` and ``CURL_CA_BUNDLE``; a name and password from the
address or from ``~/.netrc``. They go to the host they are for and to no other.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import http.client
import netrc
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm  # type: ignore[import-untyped]

from i2i_lightning import __version__
from i2i_lightning.types import UserError
from i2i_lightning.weights.catalogue import Pinned

TIMEOUT_S = 20.0
# A broken connection is taken up again after these waits; the count starts anew once a megabyte has come.
WAITS_S = (1.0, 4.0)
CHUNK_BYTES = 2**20
TRY_AGAIN = (408, 429, 500, 502, 503, 504)
CERTIFICATE_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class SourceError(UserError):
    """One source cannot give the file; another might."""


class Client:
    """Opens addresses with the proxies, certificates and passwords of the environment.

    Args:
        certificates: A file of certificates to trust besides those of the environment.
        passwords: Address of an index with a name and password in it, by host.
    """

    def __init__(self, certificates: str | None = None, passwords: Mapping[str, str] | None = None) -> None:
        self._passwords = dict(passwords or {})
        context = ssl.create_default_context()
        named = {variable: os.environ.get(variable) for variable in CERTIFICATE_VARIABLES}
        loaded: set[str] = set()
        for variable, bundle in {"pip's cert": certificates, **named}.items():
            if not bundle or bundle in loaded:
                continue
            loaded.add(bundle)
            try:
                if Path(bundle).is_dir():
                    context.load_verify_locations(capath=bundle)
                else:
                    context.load_verify_locations(cafile=bundle)
            except OSError as error:
                raise UserError(f"{variable}={bundle}: not a file of certificates ({error})") from None
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))

    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Any:
        """Return the open response of ``url``; every failure is an OSError or an HTTPException."""
        parts = urllib.parse.urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        bare = urllib.parse.urlunsplit(parts._replace(netloc=host, fragment=""))
        request = urllib.request.Request(bare, headers=dict(headers or {}))
        request.add_header("User-Agent", f"i2i_lightning/{__version__}")
        request.add_header("Accept-Encoding", "identity")
        password = self._password(url)
        if password is not None:
            # Unredirected: a redirection may lead to a host that the password is not for.
            code = base64.b64encode(password.encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {code}")
        return self._opener.open(request, timeout=TIMEOUT_S)

    def _password(self, url: str) -> str | None:
        parts = urllib.parse.urlsplit(url)
        userinfo, _, host = parts.netloc.rpartition("@")
        userinfo = userinfo or self._passwords.get(host, "")
        if userinfo:
            name, _, word = userinfo.partition(":")
            return f"{urllib.parse.unquote(name)}:{urllib.parse.unquote(word)}"
        if parts.scheme == "https":
            with contextlib.suppress(OSError, netrc.NetrcParseError):
                found = netrc.netrc().authenticators(parts.hostname or "")
                if found:
                    return f"{found[0]}:{found[2]}"
        return None


def shown(url: str) -> str:
    """Return ``url`` as it may be printed: without name, password, query and fragment."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def is_whole(path: Path, pinned: Pinned) -> bool:
    """Whether the file at ``path`` is the pinned one, to the last byte."""
    return length(path) == pinned.size_bytes and sha256_of(path) == pinned.sha256


def length(path: Path) -> int | None:
    """Return the length of a file in bytes, or None if there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def fetch(client: Client, url: str, pinned: Pinned, part: Path) -> None:
    """Fetch a file, or the rest of it.

    Args:
        client: Opens the address.
        url: Where it is: ``https:``, ``http:`` or ``file:``.
        pinned: What it has to be.
        part: Where it is collected. What an earlier call left there is continued; when this one returns, the
            whole file is there, checked.

    Raises:
        SourceError: If the source does not answer or has another file. What came of the right file is kept.
        UserError: If ``part`` cannot be written.
    """
    resumed = bool(length(part))
    _collect(client, url, pinned, part)
    got = sha256_of(part)
    if got != pinned.sha256 and resumed:
        # The beginning may have been of another file.
        part.unlink()
        _collect(client, url, pinned, part)
        got = sha256_of(part)
    if got != pinned.sha256:
        part.unlink()
        raise SourceError(f"{shown(url)}: is another file: sha256 {got}, expected {pinned.sha256}")


def _collect(client: Client, url: str, pinned: Pinned, part: Path) -> None:
    failures = 0
    hopeless = False
    with tqdm(
        total=pinned.size_bytes, desc=pinned.name, unit="B", unit_scale=True, leave=False, disable=None
    ) as bar:
        while (have := length(part) or 0) != pinned.size_bytes:
            if have > pinned.size_bytes:
                part.unlink()
                have = 0
            bar.n = have
            bar.refresh()
            try:
                _receive(client, url, pinned, part, have, bar)
            except urllib.error.HTTPError as error:
                if error.code == 416 and have:
                    part.unlink()
                elif error.code not in TRY_AGAIN:
                    raise SourceError(f"{shown(url)}: HTTP {error.code} {error.reason}") from None
                reason = f"HTTP {error.code} {error.reason}"
            except (OSError, http.client.HTTPException) as error:
                reason = reason_of(error)
                hopeless = _is_hopeless(error)
            else:
                reason = "the connection was cut"
            now = length(part) or 0
            if now == pinned.size_bytes:
                break
            failures = 0 if now - have >= CHUNK_BYTES else failures + 1
            if failures > len(WAITS_S) or hopeless:
                kept = f"; {now} of {pinned.size_bytes} B are kept for the next try" if now else ""
                raise SourceError(f"{shown(url)}: {reason}{kept}")
            time.sleep(WAITS_S[max(failures - 1, 0)])


def _receive(client: Client, url: str, pinned: Pinned, part: Path, have: int, bar: tqdm) -> None:
    headers = {"Range": f"bytes={have}-"} if have else {}
    with client.open(url, headers) as response:
        resumes = response.status == 206 and have > 0
        if not resumes:
            have = 0
        size = _announced_size(response, resumes)
        if size is not None and size != pinned.size_bytes:
            raise SourceError(f"{shown(url)}: is another file: {size} B, expected {pinned.size_bytes} B")
        bar.n = have
        with _writing(part), part.open("ab" if resumes else "wb") as file:
            for chunk in _chunks(response):
                have += len(chunk)
                if have > pinned.size_bytes:
                    file.truncate(0)
                    raise SourceError(
                        f"{shown(url)}: is another file: longer than {pinned.size_bytes} B"
                    ) from None
                file.write(chunk)
                bar.update(len(chunk))


class _ReadError(Exception):
    """Reading failed, as against writing."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _chunks(response: IO[bytes]) -> Iterator[bytes]:
    """Yield what a response holds; every failure to read is a :class:`_ReadError`."""
    while True:
        try:
            chunk = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _ReadError(error) from error
        if not chunk:
            return
        yield chunk


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell a failure to write, which no other source mends, from a failure to read."""
    try:
        yield
    except _ReadError as error:
        raise error.reason from None
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> UserError:
    """Return the error for a file or folder that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; what came so far is kept, make room and run it again")
    return UserError(
        f"{path}: cannot be written ({error.strerror}); choose another folder with --folder or I2I_WEIGHTS"
    )


def _is_hopeless(error: BaseException) -> bool:
    """Whether asking again cannot help: no such host, no such local file, an untrusted certificate."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, socket.gaierror):
        return cause.errno == socket.EAI_NONAME
    return isinstance(cause, (ssl.SSLCertVerificationError, FileNotFoundError, IsADirectoryError))


def _announced_size(response: Any, resumes: bool) -> int | None:
    """Return the length of the whole file as the server states it."""
    if resumes:
        match = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return int(match[1]) if match else None
    stated = response.headers.get("Content-Length", "")
    return int(stated) if stated.isdigit() else None


def reason_of(error: BaseException) -> str:
    """Return why an address could not be read, in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({error.verify_message}); if your network has certificates of"
            " its own, set SSL_CERT_FILE"
        )
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
