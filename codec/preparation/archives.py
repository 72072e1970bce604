"""Tar archives unpacked without trusting them: only files and folders, and nothing outside the target."""

import contextlib
import lzma
import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from codec.errors import CorpusError
from codec.output import naming
from codec.progress import Progress

_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError)
"""What reading a damaged archive raises; the last comes from fields of headers that should be numbers."""


def unpack(archive: Path, folder: Path, progress: Progress | None = None) -> None:
    """Unpack a tar archive, compressed or not.

    Members keep their content and time, not their rights and owners.

    Args:
        archive: of any compression that Python knows.
        folder: must not exist; it is there as a whole afterwards, or not at all.
        progress: called with "unpacked NAME, MB", megabytes of the archive read and in all.

    Raises:
        CorpusError: cut off, damaged, no archive, or with a member that is neither plain file nor folder or
            would land outside the folder.
        OSError: it cannot be written here.
    """
    folder.mkdir(parents=True)
    try:
        with open(archive, "rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
            size = os.fstat(raw.fileno()).st_size
            while (member := tar.next()) is not None:
                _unpack_member(tar, member, archive, folder)
                tar.members = []  # type: ignore[attr-defined]  # or every header stays in memory
                if progress:
                    progress(f"unpacked {archive.name}, MB", raw.tell() // 10**6, size // 10**6)
            # What follows the last member is zeros up to the checksum; tarfile ends quietly at a header it cannot read.
            while block := tar.fileobj.read(1 << 20):
                if block.strip(b"\0"):
                    raise tarfile.ReadError("a member has no header that can be read")
    except BaseException as error:
        shutil.rmtree(folder)
        is_of_data = isinstance(error, OSError) and error.errno is None  # of bz2 and gzip, not of the system
        if is_of_data or (isinstance(error, _DAMAGE) and not isinstance(error, CorpusError)):
            raise CorpusError(f"{archive}: is cut off, damaged or no archive ({error}); fetch it again") from error
        raise


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


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: Path, folder: Path) -> None:
    target = folder / _safe_name(member.name, archive)
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
    elif member.isfile() and not member.issparse():  # a few bytes of an archive could fill the disk with zeros
        target.parent.mkdir(parents=True, exist_ok=True)
        source = tar.extractfile(member)
        assert source is not None
        with naming(target), open(target, "wb") as stream:
            shutil.copyfileobj(source, stream, 1 << 20)
            if stream.tell() != member.size:
                raise tarfile.ReadError(f"{member.name} ends early")
        with contextlib.suppress(OverflowError, ValueError):  # a time that no file can have
            os.utime(target, (member.mtime, member.mtime))
    else:
        is_link = member.issym() or member.islnk()
        kind = "a link" if is_link else "a sparse file" if member.issparse() else "neither file nor folder"
        raise CorpusError(f"{archive}: {member.name!r} is {kind}, a corpus has none; not unpacked")


def _safe_name(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or any(letter in name for letter in "\\:\0"):
        raise CorpusError(f"{archive}: {name!r} would be unpacked outside its folder; not unpacked")
    return path
