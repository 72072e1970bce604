"""Codes <-> bytes: the `.codes` file, specified in FORMAT.md; needs numpy only."""

from codec.bitstream.container import HOLE, CodesFile, read_codes, write_codes
from codec.bitstream.header import Header, fit_name
from codec.bitstream.packing import pack, packed_size, unpack
from codec.bitstream.reader import Block, CodesReader
from codec.bitstream.recovery import Damage
from codec.bitstream.writer import CodesWriter

__all__ = [
    "HOLE",
    "Block",
    "CodesFile",
    "CodesReader",
    "CodesWriter",
    "Damage",
    "Header",
    "fit_name",
    "pack",
    "packed_size",
    "read_codes",
    "unpack",
    "write_codes",
]
