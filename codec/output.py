"""Where results go: a file that appears whole or not at all, standard output, or a device.

Knows nothing of what is written. Every file of the package that is to be whole goes through `open_output`; what grows,
as journals and downloads do, does not.
"""

import contextlib
import errno
import json
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from codec.errors import CodecError

STANDARD_STREAM = "-"
TEMPORARY_SUFFIX = ".part"


def check_path(path: str | os.PathLike[str], refusal: type[CodecError] = CodecError) -> None:
    """Refuse a path that no file can have, at which Python would raise ValueError.

    Raises:
        CodecError: `refusal`; the path has a NUL, half a surrogate pair, or letters that the locale does not have.
    """
    try:
        is_possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError as error:
        if error.encoding != "utf-8":
            raise refusal(not_in_locale(error)) from error
        is_possible = False
    if not is_possible:
        raise refusal(f"{os.fspath(path)!r}: no file can have this name; it has a NUL or half a surrogate pair")


def not_in_locale(error: UnicodeEncodeError) -> str:
    """What to do about a name that cannot be written."""
    return f"{error.object}: cannot be written in this locale, which is {error.encoding}; set PYTHONUTF8=1"


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is written directly as it comes: standard output ("-"), a device or a named pipe."""
    if os.fspath(path) == STANDARD_STREAM:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is something at a path, for those who begin anew where there is nothing.

    From Python 3.14 on, `Path.exists` also denies it where the system cannot tell.

    Raises:
        OSError: the system cannot tell.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_folder_name(path: str | os.PathLike[str]) -> bool:
    """Whether `path` ends as only a folder's may, be it there or not: in a separator."""
    return os.fspath(path).endswith((os.sep, os.altsep or os.sep))


def require_outside(target: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
    """Refuse to write sound into the folder it is made from, or below it.

    Raises:
        CodecError: `target` is the folder `source`, or lies within it.
    """
    inner, outer = os.path.realpath(target), os.path.realpath(source)
    if os.path.isdir(outer) and os.path.join(inner, "").startswith(os.path.join(outer, "")):
        place = "is the folder of the originals" if inner == outer else f"lies within {os.fspath(source)}"
        raise CodecError(
            f"{os.fspath(target)}: {place}, so its sound would be taken for more of them the next time; name a folder "
            f"outside"
        )


def shown(path: str | os.PathLike[str], stream: str) -> str:
    """What messages call a path, where "-" is `stream`: "standard input" or "standard output"."""
    return stream if os.fspath(path) == STANDARD_STREAM else os.fspath(path)


def chosen_format(
    path: str | os.PathLike[str], format: str | None, suffixes: Mapping[str, str], what: str, refusal: type[CodecError]
) -> str:
    """The format that `format`, or else the suffix of `path`, names; the first of all where there is neither.

    Args:
        path: of the output.
        format: a key of `suffixes`, or None.
        suffixes: name of each format -> its suffix.
        what: is written, for messages.
        refusal: what to raise where nothing of that name can be written, or name and suffix disagree.
    """
    known = ", ".join(suffixes)
    if format is not None and format not in suffixes:
        raise refusal(f"{format}: unknown format of {what}; can be written: {known}")
    suffix = Path(path).suffix.lower()
    named = [name for name, its_suffix in suffixes.items() if its_suffix == suffix]
    if suffix and not named:
        raise refusal(f"{os.fspath(path)}: {what} cannot be written as {suffix}; can be written: {known}")
    if format is not None and named and format not in named:
        raise refusal(f"{os.fspath(path)}: the suffix does not fit the format {format}")
    return format or next(iter(named or suffixes))


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse an output that cannot be meant, before any work is done for it.

    Raises:
        CodecError: see `check_path`.
        OSError: the path is a directory, its folder is missing, or it exists and `overwrite` is false.
    """
    check_path(path)
    if is_stream(path):
        return
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a directory, name a file", os.fspath(path))
    if is_folder_name(path):
        raise FileNotFoundError(errno.ENOENT, "there is no such folder; make it first", os.fspath(path))
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder to write to", os.fspath(folder))
    if os.path.lexists(path) and not overwrite:
        message = "already exists; choose another name, or replace it (--overwrite, in Python overwrite=True)"
        raise FileExistsError(errno.EEXIST, message, os.fspath(path))


def _take_over(target: Path, temporary: Path) -> None:
    """Give a file the owner, group and permissions of the one that it will replace, if there is one."""
    if sys.platform == "win32":  # where a file may be read-only, and then cannot be removed
        return
    with contextlib.suppress(FileNotFoundError):
        known = os.stat(target)
        for owner, group in ((known.st_uid, -1), (-1, known.st_gid)):
            with contextlib.suppress(OSError):  # not everyone may
                os.chown(temporary, owner, group)
        with contextlib.suppress(OSError):  # the file system has no permissions
            os.chmod(temporary, known.st_mode & 0o777)


@contextlib.contextmanager
def open_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A binary stream whose content stands at `path` once the block has ended without an exception.

    The bytes go to a hidden file in the same folder, which is renamed at the end and removed after any exception,
    KeyboardInterrupt and SystemExit included. A file that is replaced hands on its permissions, and its owner where
    that is allowed: what was private stays so. Standard output ("-"), devices and named pipes are written directly;
    those streams cannot seek.

    Raises:
        CodecError: see `check_path`.
        OSError: see `check_output`; or the system refuses (rights, full disk). `filename` is always `path`.
    """
    check_output(path, overwrite=overwrite)
    with naming(shown(path, "standard output")):
        if os.fspath(path) == STANDARD_STREAM:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
            return
        if is_stream(path):
            with open(path, "wb") as stream:
                yield stream
            return
        # A link is followed, so that its target is replaced and not the link.
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
        try:
            with open(temporary, "x+b") as stream:
                _take_over(target, temporary)
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            check_output(path, overwrite=overwrite)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, least_age: float = 0.0) -> None:
    """Remove what `open_output` has left in a folder where its process was killed.

    Nothing may be writing there, or else only what was written to within the last `least_age` seconds.
    """
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            if not least_age or time.time() - path.stat().st_mtime >= least_age:
                path.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8, in the place of what is there. Bytes of file names that are no text become `\\udcff`.

    Raises:
        OSError: see `open_output`.
    """
    with open_output(path, overwrite=True) as stream:
        stream.write(text.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], values: Any, indent: int | None = 2) -> None:
    """Write a value as JSON, in the place of what is there; every name of a file is read as it was.

    Raises:
        OSError: see `open_output`.
        ValueError: a number is infinite or none, which JSON has not.
    """
    write_text(path, json.dumps(values, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def naming(name: str | os.PathLike[str]) -> Iterator[None]:
    """Give system errors that come without a file name, or with the temporary one, the name the user knows."""
    try:
        yield
    except OSError as error:
        unnamed = error.filename is None or str(error.filename).endswith(TEMPORARY_SUFFIX)
        if error.errno is not None and unnamed and not isinstance(error, BrokenPipeError):
            error.filename = os.fspath(name)
        raise
