"""Weights of metrics that are models: where they are looked for, and how they are had, with their sums pinned."""

import os
from dataclasses import dataclass
from pathlib import Path

from codec.digests import sha256
from codec.download import download
from codec.errors import CodecError, ModelError, sentence


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
    """`$CODEC_CACHE`, or `codec` in the user's cache folder; that begins with `~` where the user has no home folder."""
    if folder := os.environ.get("CODEC_CACHE"):
        return Path(os.path.expanduser(folder))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "codec"


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


def fetch(artefact: Artefact) -> Path:
    """The artefact in the cache, downloaded first where it is missing; one that was interrupted goes on.

    Raises:
        ModelError: no folder for it, no network, or what came is not what was published.
    """
    target = artefact.cached
    if target.parts[0] == "~":
        raise ModelError(f"there is no home folder to keep {artefact.name} in; name a folder in CODEC_CACHE")
    if target.is_file():
        if sha256(target) != artefact.sha256:
            raise ModelError(f"{target}: is not the published file (its SHA-256 differs); delete it and try again")
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        download([artefact.url], target, artefact.sha256, num_bytes=artefact.num_bytes)
    except (CodecError, OSError) as error:
        raise ModelError(f"{sentence(error)}; fetch it by other means and name it") from error
    return target
