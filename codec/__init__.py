"""Speech to 0.9 kbit/s codes and back.

Nothing heavy is imported until one of the names below is used.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.19.0"

_HOME_OF = {
    "load": "codec.model.weights",
    "save": "codec.model.weights",
    "Codec": "codec.model.codec",
    "SimVQ": "codec.model.quantizer",
    "StreamEncoder": "codec.streaming",
    "StreamDecoder": "codec.streaming",
    "WindowDecoder": "codec.streaming",
    "RefiningEncoder": "codec.refinement",
    "encode_file": "codec.files",
    "decode_file": "codec.files",
    "header_of": "codec.files",
    "tokenize": "codec.tokenization.corpus",
    "Tokens": "codec.tokenization.shards",
    "read_codes": "codec.bitstream",
    "write_codes": "codec.bitstream",
    "CodecError": "codec.errors",
}

__all__ = [
    "Codec",
    "CodecError",
    "RefiningEncoder",
    "SimVQ",
    "StreamDecoder",
    "StreamEncoder",
    "Tokens",
    "WindowDecoder",
    "__version__",
    "decode_file",
    "encode_file",
    "header_of",
    "load",
    "read_codes",
    "save",
    "tokenize",
    "write_codes",
]

if TYPE_CHECKING:
    from codec.bitstream import read_codes, write_codes
    from codec.errors import CodecError
    from codec.files import decode_file, encode_file, header_of
    from codec.model.codec import Codec
    from codec.model.quantizer import SimVQ
    from codec.model.weights import load, save
    from codec.refinement import RefiningEncoder
    from codec.streaming import StreamDecoder, StreamEncoder, WindowDecoder
    from codec.tokenization.corpus import tokenize
    from codec.tokenization.shards import Tokens
else:  # or a type checker would take any name for a public one

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module 'codec' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
