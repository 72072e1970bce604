"""Tables: with aligned columns for people, with tabs between them for programs."""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from codec.output import write_text


def aligned(rows: Sequence[Sequence[str]], words: Collection[str]) -> list[str]:
    """Lines whose columns are as wide as their widest cell.

    Args:
        rows: the names of the columns, then their values.
        words: columns that begin together; all others are numbers, and end together.
    """
    columns = []
    for name, *cells in zip(*rows, strict=True):
        width = max(map(len, (name, *cells)))
        columns.append([cell.ljust(width) if name in words else cell.rjust(width) for cell in (name, *cells)])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def write_table(path: str | os.PathLike[str], columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table, in the place of what is there. Tabs and line breaks within a cell become spaces.

    Raises:
        OSError: see `codec.output.open_output`.
    """
    lines = ("\t".join(re.sub(r"[\t\r\n]", " ", str(cell)) for cell in row) for row in (columns, *rows))
    write_text(path, "".join(f"{line}\n" for line in lines))
