"""Weights of metrics that are models: where they are looked for, and how they are had, with their sums pinned."""

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from codec.digests import BLOCK_BYTES, sha256
from codec.errors import ModelError

TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Artefact:
    """A file that somebody else has published."""

    name: str  # of the file in the cache
    url: str
    num_bytes: int
    sha256: str
    licence: str

    @property
    def cached(self) -> Path:
        """Where a downloaded copy lies."""
        return cache_folder() / self.name


def cache_folder() -> Path:
    """`$CODEC_CACHE`, or `codec` in the user's cache folder."""
    if folder := os.environ.get("CODEC_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codec"


def check(artefact: Artefact, path: Path) -> None:
    """Refuse a file that was meant to be the published one, because it has its length, and is not.

    Raises:
        ModelError: damaged.
    """
    if path.stat().st_size == artefact.num_bytes and sha256(path) != artefact.sha256:
        raise ModelError(
            f"{path}: has the length of the published {artefact.name} but another SHA-256, {sha256(path)} instead of "
            f"{artefact.sha256}; it is damaged, fetch it again from {artefact.url}"
        )


def download(artefact: Artefact) -> Path:
    """The artefact in the cache, fetched first where it is missing.

    Raises:
        ModelError: no network, or what came is not what was published; nothing is kept then.
    """
    target = artefact.cached
    if target.is_file():
        if target.stat().st_size != artefact.num_bytes or sha256(target) != artefact.sha256:
            raise ModelError(f"{target}: is not the published file (its SHA-256 differs); delete it and try again")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    digest, count = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(artefact.url, timeout=TIMEOUT) as response, open(part, "wb") as stream:
            while chunk := response.read(BLOCK_BYTES):
                count += len(chunk)
                if count > artefact.num_bytes:
                    break
                digest.update(chunk)
                stream.write(chunk)
        if count != artefact.num_bytes or digest.hexdigest() != artefact.sha256:
            raise ModelError(
                f"{artefact.url}: sent {count} bytes with SHA-256 {digest.hexdigest()}, published are "
                f"{artefact.num_bytes} with {artefact.sha256}; nothing was kept"
            )
        os.replace(part, target)
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        reason = getattr(error, "reason", None) or error
        raise ModelError(f"{artefact.url}: cannot be had ({reason}); fetch it by other means and name it") from error
    finally:
        part.unlink(missing_ok=True)
    return target
