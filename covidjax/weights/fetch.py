"""Published files of weights onto this machine, proven before they are used."""

import contextlib
import dataclasses
import importlib.metadata
import os
import re
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from covidjax.console import Progress, say
from covidjax.errors import UserError
from covidjax.files import digest
from covidjax.process import is_writable, temporary_cache
from covidjax.weights.catalog import HUB_FILE, Source

TIMEOUT_SECONDS = 20
BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A file on this machine. revision: the hub's commit, '' for other sources; sha256: of the whole file."""

    path: Path
    sha256: str
    revision: str = ""


def fetch(source: Source, folder: Path, endpoint: str = constants.ENDPOINT) -> Fetched:
    """The file of a source: what lies in `folder` under its name, else from its package, the hub or its url.

    endpoint: the hub. Raises UserError, saying what to download to where, without a network; what to install, without
    the package; and where the checksum is not the published one.
    """
    local = folder / source.file_name
    if local.is_file():
        return Fetched(local, _proven(local, source))
    if source.package:
        return _from_package(source)
    if source.hub:
        return _from_hub(source, local, endpoint)
    return _from_url(source, _writable(folder) / source.file_name)


def _writable(folder: Path) -> Path:
    """The folder, or one among the temporary files where it cannot be written, which is said."""
    if is_writable(folder):
        return folder
    other = temporary_cache() / folder.name
    say(f"{folder} cannot be written: weights are kept in {other}")
    other.mkdir(exist_ok=True)
    return other


def _from_package(source: Source) -> Fetched:
    """The file beside an installed package, which is never imported."""
    name, _, version = source.package.partition("==")
    try:
        installed = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{source.id} is in the package {name}, which is not installed: {source.origin}") from None
    path = Path(str(installed.locate_file(source.url)))
    if installed.version != version or not path.is_file():
        raise UserError(f"{source.id} is not in {name} {installed.version} as installed: {source.origin}")
    return Fetched(path, _proven(path, source))


def _from_hub(source: Source, local: Path, endpoint: str) -> Fetched:
    cache = Path(constants.HF_HUB_CACHE)
    if cache.parts[0] == "~":  # this process has no home
        cache = temporary_cache() / "hub"
    try:
        name = hf_hub_download(source.hub, HUB_FILE, endpoint=endpoint, local_files_only=True, cache_dir=cache)
    except (OSError, ValueError):
        try:
            # Without a network the library tries for half a minute and prints each attempt: ask first.
            address = f"{endpoint}/{source.hub}/resolve/main/{HUB_FILE}"
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT_SECONDS).close()
            name = hf_hub_download(source.hub, HUB_FILE, endpoint=endpoint, cache_dir=_writable(cache))
        except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise _unreachable(source, local, error) from error
    path = Path(name)
    sha256 = digest(path, "sha256")
    # The hub's cache names a large file by the SHA-256 that the hub has of it, and its folder by the commit.
    named = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", named) and named != sha256:
        raise UserError(f"{path} is not the file of {source.hub}: its SHA-256 is {sha256}: remove it and start again")
    return Fetched(path, sha256, path.parent.name)


def _from_url(source: Source, local: Path) -> Fetched:
    temporary = None
    try:
        local.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{local.name}.", suffix=".tmp", dir=local.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as target, urllib.request.urlopen(source.url, timeout=TIMEOUT_SECONDS) as response:
            total = int(response.headers.get("Content-Length") or 0)
            progress = Progress(f"downloading {local.name}, MiB", max(total // BLOCK, 1))
            done = 0
            while block := response.read(BLOCK):
                target.write(block)
                done += len(block)
                progress.show(min(done // BLOCK, max(total // BLOCK, 1)))
            if total and done != total:
                raise OSError(f"the connection ended after {done} of {total} bytes")
            target.flush()
            os.fsync(target.fileno())
        sha256 = _proven(temporary, source)
        os.replace(temporary, local)
        progress.finish(f"downloaded {local}")
        return Fetched(local, sha256)
    except (OSError, ValueError) as error:
        raise _unreachable(source, local, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _proven(path: Path, source: Source) -> str:
    """The SHA-256 of a file. Raises UserError where its checksum is not the published one."""
    kind, _, wanted = source.checksum.partition(":")
    found = digest(path, kind or "sha256")
    if not found.startswith(wanted):
        raise UserError(
            f"{path.name} is not the published file of {source.id}: its {kind} is {found[: len(wanted)]}, not "
            f"{wanted}: remove it, get it again ({source.origin}), or give a file of your own as config.pretrained"
        )
    return found if kind in ("", "sha256") else digest(path, "sha256")


def _unreachable(source: Source, local: Path, error: Exception) -> UserError:
    reason = getattr(error, "reason", None) or error
    reason = " ".join(str(reason).split())[:120]
    return UserError(
        f"{source.id} could not be downloaded ({reason}): download {source.url} to {local}, or give a local file as "
        "config.pretrained"
    )
