"""What tells whether a file is the one that was meant."""

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 1 << 20


def blocks(path: Path) -> Iterator[bytes]:
    """The content of a file, a piece at a time."""
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits; remembered as long as the file does not change."""
    status = os.stat(path)
    return _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, *state: int) -> str:
    digest = hashlib.sha256()
    for block in blocks(path):
        digest.update(block)
    return digest.hexdigest()
