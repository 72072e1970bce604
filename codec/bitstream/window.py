"""Streams of bytes that cannot seek, such as pipes: look ahead in them, and say which one is in trouble."""

from typing import BinaryIO

from codec.errors import CodecError
from codec.output import naming


class Window:
    """The next bytes of a stream, to be looked at before they are taken.

    Args:
        stream: open for reading bytes.
        name: of the stream, for error messages.

    Attributes:
        position: bytes taken so far.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.position = 0
        self._stream = stream
        self._name = name
        self._held = bytearray()

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, or fewer if the stream ends before; blocks until they are there.

        Raises:
            OSError: the stream cannot be read.
            CodecError: it is not in blocking mode, and has no data yet.
        """
        while len(self._held) < size:
            with naming(self._name):
                chunk = self._stream.read(size - len(self._held))
            if chunk is None:
                raise CodecError(f"{self._name}: cannot be read: no data yet; open it in blocking mode")
            if not chunk:
                break
            self._held += chunk
        return bytes(self._held[:size])

    def skip(self, size: int) -> None:
        """Take `size` bytes, all of which have been looked at."""
        assert size <= len(self._held)
        del self._held[:size]
        self.position += size

    def read(self, size: int) -> bytes:
        """Take the next `size` bytes, or fewer if the stream ends before; see `peek`."""
        data = self.peek(size)
        self.skip(len(data))
        return data


def name_of(stream: object) -> str:
    """How error messages call a stream: by its path if it has one."""
    name = getattr(stream, "name", None)
    return name if isinstance(name, str) else "stream"
