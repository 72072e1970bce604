"""Large files over HTTP: resumed where they were cut, tried at several mirrors, there only when their sum is right."""

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from codec.digests import BLOCK_BYTES, blocks
from codec.errors import CorpusError
from codec.progress import Progress

TIMEOUT = 60.0  # s without a byte
ATTEMPTS = 6  # in a row without a byte, per mirror
_IS_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})


class _Refused(Exception):
    """This mirror will not do; another may."""


class _BrokenOff(Exception):
    """The network failed while a file was read; not the disk while it was written."""


def download(
    urls: Sequence[str],
    target: Path,
    md5: str,
    *,
    num_bytes: int | None = None,
    pause: float = 1.0,
    progress: Progress | None = None,
) -> None:
    """Bring a file to `target`, which appears there only when it is whole and its sum is right.

    What has arrived is kept in `<target>.part`; the next call goes on from there, with any mirror. A server that knows
    no ranges sends it all again.

    Args:
        urls: of the same file at several mirrors, best first; http or https.
        target: its folder must exist.
        md5: published sum, hexadecimal.
        num_bytes: published size, where it is known.
        pause: before the second attempt, s; it doubles with every further one.
        progress: called with "fetched NAME, MB", megabytes and those in all.

    Raises:
        CorpusError: no mirror serves the file; says for each why.
        OSError: it cannot be written here.
    """
    part = target.with_name(target.name + ".part")
    complaints = []
    for url in urls:
        try:
            was_begun = part.exists()
            _fetch(url, part, num_bytes, pause, progress)
            found = md5_of(part, progress)
            if found != md5 and was_begun:
                # What was there before may have been of another file.
                part.unlink()
                _fetch(url, part, num_bytes, pause, progress)
                found = md5_of(part, progress)
            if found != md5:
                part.unlink()
                raise _Refused(f"serves a file with the MD5 sum {found}, the published one is {md5}")
        except _Refused as error:
            complaints.append(f"{url} {error}")
            continue
        os.replace(part, target)
        return
    raise CorpusError(f"{target.name} could not be fetched: {'; '.join(complaints)}")


def md5_of(path: Path, progress: Progress | None = None) -> str:
    """MD5 sum of a file, hexadecimal. Published sums of corpora are MD5; against malice it would not do."""
    digest = hashlib.md5(usedforsecurity=False)
    total, done = path.stat().st_size, 0
    for block in blocks(path):
        digest.update(block)
        done += len(block)
        if progress:
            progress(f"checked {path.name}", done, total)
    return digest.hexdigest()


def require_space(folder: Path, num_bytes: float, purpose: str) -> None:
    """Refuse work for which the disk has no room, before it is begun.

    Raises:
        CorpusError: less than `num_bytes` are free where `folder` lies, or will lie.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise CorpusError(
            f"{folder}: {purpose} takes about {num_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make room or "
            f"choose another disk"
        )


def _fetch(url: str, part: Path, num_bytes: int | None, pause: float, progress: Progress | None) -> None:
    """Bring all bytes of `url` to `part`, in as many connections as it takes."""
    failures, last, most = 0, "", 0
    while failures < ATTEMPTS:
        have = part.stat().st_size if part.exists() else 0
        if failures:
            time.sleep(min(pause * 2 ** (failures - 1), 60.0))
        try:
            if _append(url, part, have, num_bytes, progress):
                return
            last = "cuts the connection"
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:
                part.unlink()  # longer than what the server has: not this file
            elif error.code not in _IS_TEMPORARY:
                raise _Refused(f"answers {error.code} {error.reason}") from error
            last = f"answers {error.code} {error.reason}"
        except urllib.error.URLError as error:
            last = f"cannot be reached ({error.reason})"
        except (http.client.HTTPException, TimeoutError, ConnectionError, _BrokenOff) as error:
            last = f"breaks off ({type(error.__cause__ or error).__name__})"
        now = part.stat().st_size if part.exists() else 0
        failures = 1 if now > max(most, have) else failures + 1
        most = max(most, now)
    raise _Refused(f"{last}, {ATTEMPTS} times in a row")


def _append(url: str, part: Path, have: int, num_bytes: int | None, progress: Progress | None) -> bool:
    """One connection; returns whether the file is complete."""
    if num_bytes is not None and have >= num_bytes:
        return True
    request = urllib.request.Request(url, headers={"User-Agent": "codec", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        length = response.headers.get("Content-Length", "")
        is_continued = response.status == 206
        if is_continued and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            return False
        have = have if is_continued else 0
        total = have + int(length) if length.isdigit() else num_bytes
        if num_bytes is not None and total != num_bytes:
            raise _Refused(f"offers {total} bytes, {num_bytes} are published")
        with open(part, "ab" if is_continued else "wb") as stream:
            while block := _read(response):
                stream.write(block)
                have += len(block)
                if total is not None and have > total:
                    raise _Refused(f"sends more than the {total} bytes it offers")
                if progress:
                    progress(f"fetched {part.stem}, MB", have // 10**6, (total or have) // 10**6)
        return total is None or have == total


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff from error
