"""Whole files or none: written under a temporary name, then renamed; cells that no spreadsheet runs; and what to say
where the system or a network refuses."""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (
    *FULL,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EFBIG,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)

CAUSES = {  # in the words of requests, httpx and urllib3; the proxy first, as its name or its answer may be what fails
    r"offline mode|outgoing traffic": "HF_HUB_OFFLINE is set",
    r"proxy": "the proxy does not let it through; see HTTPS_PROXY",
    r"certificate|ssl": "the TLS certificate is not trusted; SSL_CERT_FILE and REQUESTS_CA_BUNDLE name yours",
    r"resol|getaddrinfo|name or service": "its name is not resolved: no network, or no DNS",
    r"time.?out": "no answer in time",
    r"refused": "the connection is refused",
    r"reset|aborted|broken|incomplete": "the connection broke off",
}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give the name under which to write what is to be `path`, and rename it; leave nothing if that fails.

    Raises OSError that names `path`, also where a library says in its own words that the system refused.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with refusals_named(path):
        try:
            yield unfinished
            os.replace(unfinished, path)
        finally:
            with suppress(OSError):
                unfinished.unlink()


def file_sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def refusals_named(path: Path) -> Iterator[None]:
    """Let what the system refuses be an OSError that names `path`: a full disk names no file, a library no error."""
    try:
        yield
    except Exception as error:
        if number := _errno(error):
            raise OSError(number, os.strerror(number), str(path)) from None
        raise


def _errno(error: BaseException) -> int | None:
    """That of an error, of the one that torch.save met in a file that was given to it, or that safetensors reports."""
    for one in (error, error.__context__):
        if isinstance(one, OSError):
            return one.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def refusal(error: OSError) -> str | None:
    """A sentence for what the system refused: a full disk, missing rights, a name too long; None for other errors."""
    if error.errno not in REFUSED:
        return None
    path, reason = error.filename, error.strerror
    if error.errno in FULL:
        return f"disk full: {path or 'a file'} cannot be written ({reason}); make room and give the command again"
    if path is None:
        return f"a file cannot be read or written: {reason}"
    if error.errno == errno.ENAMETOOLONG:
        return f"the name {path} is too long for a file: give a shorter one"
    closed = os.path.exists(Path(path).parent) and not os.access(Path(path).parent, os.X_OK)
    unreadable = closed or (os.path.exists(path) and not os.access(path, os.R_OK))
    return f"{path} cannot be {'read' if unreadable else 'written'}: {reason}"


def why_no_download(error: BaseException | None) -> str:
    """What kept a download from succeeding, in a few words, from an HTTP library's error and those behind it."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for one in chain:
        if status := getattr(getattr(one, "response", None), "status_code", None):
            return f"the server answers {status}"
    said = " ".join(f"{type(one).__name__} {one}" for one in chain)
    for pattern, cause in CAUSES.items():
        if re.search(pattern, said, re.IGNORECASE):
            return cause
    return f"{type(chain[0]).__name__}, {' '.join(str(chain[0]).split())[:200]}"


def spreadsheet_cell(text: str) -> str:
    """A text that no spreadsheet runs as a formula, by an apostrophe before it; `plain_cell` takes that away."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "'") and not _is_number(text) else text


def plain_cell(text: str) -> str:
    """What `spreadsheet_cell` was given."""
    return text.removeprefix("'")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
