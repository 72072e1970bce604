"""Integers of b bits as bytes, without gaps, most significant bit first; knows nothing of files."""

import numpy as np

from codec.errors import FormatError

MAX_BITS = 32


def packed_size(num_codes: int, bits: int) -> int:
    """Number of bytes that `num_codes` integers of `bits` bits take: ceil(num_codes * bits / 8)."""
    return -(-num_codes * bits // 8)


def pack(codes: np.ndarray, bits: int) -> bytes:
    """Write integers one after another into bytes.

    Args:
        codes: (N,) of any integer dtype, each in [0, 2**bits).
        bits: 1 to 32.

    Returns:
        packed_size(N, bits) bytes; unused bits of the last byte are 0.

    Raises:
        FormatError: not one-dimensional, not integers, or an integer does not fit into `bits` bits.
    """
    check_codes(codes, 1 << _checked(bits))
    as_bytes = codes.astype(">u4").view(np.uint8).reshape(-1, 4)  # (N,) -> (N, 4)
    return np.packbits(np.unpackbits(as_bytes, axis=1)[:, MAX_BITS - bits :]).tobytes()


def unpack(data: bytes, bits: int, num_codes: int) -> np.ndarray:
    """Read back what `pack` wrote.

    Args:
        data: exactly packed_size(num_codes, bits) bytes.
        bits: 1 to 32.
        num_codes: N >= 0.

    Returns:
        (N,) int64 in [0, 2**bits).

    Raises:
        FormatError: wrong number of bytes, or unused bits of the last byte are not 0.
    """
    size = packed_size(num_codes, _checked(bits))
    if len(data) != size:
        raise FormatError(f"{num_codes} codes of {bits} bits take {size} bytes, got {len(data)}")
    flat = np.unpackbits(np.frombuffer(data, np.uint8))
    if flat[num_codes * bits :].any():
        raise FormatError(f"the unused bits after {num_codes} codes of {bits} bits must be 0")
    padded = np.zeros((num_codes, MAX_BITS), np.uint8)
    padded[:, MAX_BITS - bits :] = flat[: num_codes * bits].reshape(num_codes, bits)
    return np.packbits(padded, axis=1).view(">u4").astype(np.int64).reshape(num_codes)  # (N, 4) -> (N,)


def check_codes(codes: np.ndarray, codebook_size: int, first_frame: int = 0) -> None:
    """Refuse what is not a sequence of codes in [0, codebook_size), naming the first frame that is wrong.

    Args:
        codes: an array of any shape and type.
        codebook_size: K.
        first_frame: number of the first of these frames in the recording, for the message.
    """
    if codes.ndim != 1:
        raise FormatError(f"codes must be one sequence of shape (N,), got shape {codes.shape}")
    if codes.dtype.kind not in "iu":
        raise FormatError(f"codes must be integers, got {codes.dtype}")
    wrong = (codes < 0) | (codes >= codebook_size)
    if wrong.any():
        n = int(wrong.argmax())
        raise FormatError(f"codes must be in 0..{codebook_size - 1}, got {codes[n]} at frame {first_frame + n}")


def _checked(bits: int) -> int:
    if not 1 <= bits <= MAX_BITS:
        raise FormatError(f"bits per code must be 1 to {MAX_BITS}, got {bits}")
    return bits
