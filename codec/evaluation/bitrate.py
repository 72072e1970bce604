"""True bit rate: bytes on disk over seconds of sound."""


def bitrate(num_bytes: int, seconds: float) -> float:
    """kbit/s of `num_bytes` for `seconds` of sound; header, checksums and length of a file included."""
    return num_bytes * 8 / seconds / 1000
