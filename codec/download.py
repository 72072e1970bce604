"""Large files over HTTP: resumed where they were cut, tried at several mirrors, there only when their sum is right."""

import contextlib
import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

if sys.platform != "win32":
    import fcntl

from codec.digests import BLOCK_BYTES, blocks
from codec.errors import CodecError
from codec.progress import Progress

TIMEOUT = 60.0  # s without a byte
ATTEMPTS = 6  # in a row without a byte, per mirror
TIMEOUT_UNREACHED = 10.0  # s, of a mirror that has not answered yet: where there is no network, patience is in vain
ATTEMPTS_UNREACHED = 3
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers after which another try may do


class _Refused(Exception):
    """This mirror will not do; another may."""


class _BrokenOff(Exception):
    """The network failed once a mirror was reached; not the disk while the file was written."""


def download(
    urls: Sequence[str],
    target: Path,
    checksum: str,
    *,
    num_bytes: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Bring a file to `target`, which appears there only when it is whole and its sum is right.

    What has arrived is kept in `<target>.part`; the next call goes on from there, with any mirror. A server that knows
    no ranges sends it all again. Of several processes that want the same file one brings it, and the others wait.

    Args:
        urls: of the same file at several mirrors, best first; http or https.
        target: not there; its folder must exist.
        checksum: published MD5 or SHA-256, hexadecimal.
        num_bytes: published size, where it is known.
        progress: called with "fetched NAME, MB", megabytes and those in all.

    Raises:
        CodecError: no mirror serves the file; says for each why.
        OSError: it cannot be written here.
    """
    with _alone(target.parent):
        if not target.exists():
            _download(urls, target, checksum, num_bytes, progress)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process downloads to this folder, where the system can tell: Windows cannot."""
    if sys.platform == "win32":
        yield
    else:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some file systems cannot lock
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _download(
    urls: Sequence[str], target: Path, checksum: str, num_bytes: int | None, progress: Progress | None
) -> None:
    part = target.with_name(target.name + ".part")
    complaints = []
    for url in urls:
        try:
            was_begun = part.exists()
            _fetch(url, part, num_bytes, progress)
            found = sum_like(checksum, part, progress)
            if found != checksum and was_begun:
                # What was there before may have been of another file.
                part.unlink()
                _fetch(url, part, num_bytes, progress)
                found = sum_like(checksum, part, progress)
            if found != checksum:
                part.unlink()
                raise _Refused(f"serves a file with the sum {found}, the published one is {checksum}")
        except _Refused as error:
            complaints.append(f"{url} {error}")
            continue
        os.replace(part, target)
        return
    raise CodecError(f"{target.name} could not be fetched: {'; '.join(complaints)}")


def sum_like(checksum: str, path: Path, progress: Progress | None = None) -> str:
    """MD5 of a file, or SHA-256 where `checksum` is as long as one; hexadecimal. Against malice MD5 would not do."""
    digest = hashlib.sha256() if len(checksum) == 64 else hashlib.md5(usedforsecurity=False)
    total, done = path.stat().st_size, 0
    for block in blocks(path):
        digest.update(block)
        done += len(block)
        if progress:
            progress(f"checked {path.name}", done, total)
    return digest.hexdigest()


def _fetch(url: str, part: Path, num_bytes: int | None, progress: Progress | None) -> None:
    """Bring all bytes of `url` to `part`, in as many connections as it takes."""
    failures, last, most, is_reached = 0, "", 0, False
    while failures < (ATTEMPTS if is_reached else ATTEMPTS_UNREACHED):
        was_reached, is_reached = is_reached, True
        have = part.stat().st_size if part.exists() else 0
        if failures:
            time.sleep(2 ** (failures - 1))
        try:
            if _append(url, part, have, num_bytes, TIMEOUT if was_reached else TIMEOUT_UNREACHED, progress):
                return
            last = "cuts the connection"
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:
                if error.headers.get("Content-Range") == f"bytes */{have}":
                    return  # all of it is there
                part.unlink()  # longer than what the server has: not this file
            elif error.code not in _TEMPORARY:
                raise _Refused(f"answers {error.code} {error.reason}") from error
            last = f"answers {error.code} {error.reason}"
        except urllib.error.URLError as error:
            last, is_reached = f"cannot be reached ({error.reason})", was_reached
        except (ValueError, http.client.InvalidURL) as error:
            raise _Refused(f"is no address of a server ({error})") from error
        except _BrokenOff as error:
            last = f"breaks off ({type(error.__cause__).__name__})"
        now = part.stat().st_size if part.exists() else 0
        failures = 1 if now > max(most, have) else failures + 1
        most = max(most, now)
    raise _Refused(f"{last}, {failures} times in a row")


def _append(url: str, part: Path, have: int, num_bytes: int | None, timeout: float, progress: Progress | None) -> bool:
    """One connection; returns whether the file is complete."""
    if num_bytes is not None and have >= num_bytes:
        return True
    request = urllib.request.Request(url, headers={"User-Agent": "codec", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with _open(request, timeout) as response:
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


def _open(request: urllib.request.Request, timeout: float) -> http.client.HTTPResponse:
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
        return response
    except (urllib.error.URLError, http.client.InvalidURL):
        raise
    except (OSError, http.client.HTTPException) as error:  # while the answer is waited for
        raise _BrokenOff from error


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff from error
