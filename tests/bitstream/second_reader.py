"""A second reader and writer of `.codes`, made from FORMAT.md alone: plain Python, nothing of `codec.bitstream`.

What both agree on is in the specification, and not only in our code.
"""

import binascii
import math
import struct


def bit_string(codes: list[int], bits: int) -> bytes:
    """Codes as bytes by way of a text of zeros and ones."""
    text = "".join(format(code, f"0{bits}b") for code in codes)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def build(
    codes: list[int],
    num_samples: int,
    *,
    sample_rate: int = 24000,
    hop_length: int = 320,
    codebook_size: int = 4096,
    block_frames: int = 8,
    fingerprint: str = "0123456789abcdef",
    model: bytes = b"tiny",
    version: int = 1,
    bits: int | None = None,
) -> list[bytes]:
    """The records of a file: header, full blocks, end record, last block (maybe empty)."""
    bits = bits or max(1, math.ceil(math.log2(codebook_size)))
    header = bytes.fromhex("C0DE530A") + struct.pack(
        ">BIHIH", version, sample_rate, hop_length, codebook_size, block_frames
    )
    header += bytes.fromhex(fingerprint) + bytes([len(model)]) + model
    check = struct.pack(">I", binascii.crc32(header))
    records = [header + check]
    for number in range(len(codes) // block_frames):
        records.append(b"B" + block(check, number, codes[number * block_frames : (number + 1) * block_frames], bits))
    records.append(end(check, len(codes), num_samples - max(0, len(codes) - 1) * hop_length))
    rest = codes[len(codes) // block_frames * block_frames :]
    records.append(block(check, len(codes) // block_frames, rest, bits) if rest else b"")
    return records


def block(check: bytes, number: int, codes: list[int], bits: int) -> bytes:
    payload = bit_string(codes, bits)
    return struct.pack(">I", binascii.crc32(check + struct.pack(">IH", number, len(codes)) + payload)) + payload


def end(check: bytes, num_frames: int, last_frame_samples: int) -> bytes:
    fields = b"E" + struct.pack(">IH", num_frames, last_frame_samples)
    return fields + struct.pack(">I", binascii.crc32(check + fields))


def read(data: bytes) -> tuple[list[int], int]:
    """Codes and number of samples of an intact file; asserts that it is one."""
    assert data[:5].hex() == "c0de530a01"
    _, hop_length, codebook_size, block_frames = struct.unpack(">IHIH", data[5:17])
    place = 26 + data[25]
    check, place = data[place : place + 4], place + 4
    assert struct.unpack(">I", check)[0] == binascii.crc32(data[: place - 4])
    bits = max(1, math.ceil(math.log2(codebook_size)))
    codes: list[int] = []
    number = 0

    def take(num_frames: int) -> None:
        nonlocal place, number
        payload = data[place + 4 : place + 4 + math.ceil(num_frames * bits / 8)]
        expected = binascii.crc32(check + struct.pack(">IH", number, num_frames) + payload)
        assert struct.unpack(">I", data[place : place + 4])[0] == expected
        text = "".join(format(byte, "08b") for byte in payload)
        codes.extend(int(text[n * bits : (n + 1) * bits], 2) for n in range(num_frames))
        place += 4 + len(payload)
        number += 1

    while data[place : place + 1] == b"B":
        place += 1
        take(block_frames)
    fields = data[place : place + 7]
    tag, num_frames, last_frame_samples = struct.unpack(">cIH", fields)
    assert tag == b"E"
    assert struct.unpack(">I", data[place + 7 : place + 11])[0] == binascii.crc32(check + fields)
    place += 11
    if num_frames % block_frames:
        take(num_frames % block_frames)
    assert place == len(data)
    assert len(codes) == num_frames
    assert all(code < codebook_size for code in codes)
    return codes, max(0, num_frames - 1) * hop_length + last_frame_samples
