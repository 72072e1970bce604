"""Spectrograms as PNG and distributions as SVG, without a plotting library."""

import struct
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np

from codec.evaluation.spectra import mel_magnitudes

NUM_BANDS = 96
RANGE_DB = 80.0
_MAX_WIDTH = 900
# Dark blue over purple and orange to pale yellow: as readable in grey as in colour.
_PALETTE = ((0, (4, 4, 22)), (70, (72, 16, 104)), (140, (178, 50, 88)), (205, (247, 140, 40)), (255, (252, 250, 180)))


def png(levels: np.ndarray) -> bytes:
    """A picture of (height, width) uint8 in our palette."""
    height, width = levels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), levels.astype(np.uint8)], axis=1)  # 0: no filter
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", _palette().tobytes()),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _palette() -> np.ndarray:
    """(256, 3) uint8."""
    places, colours = [place for place, _ in _PALETTE], np.array([colour for _, colour in _PALETTE])
    channels = [np.interp(np.arange(256), places, colours[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


SMALLEST_RANGE = 1e-9
"""Of values, relative to the largest: less is rounding, and has no distribution to show."""


def spectrograms(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> tuple[bytes, bytes]:
    """Log-mel spectrograms of both as PNG, low frequencies below, on one scale: 80 dB under the loudest of both."""
    hop_length = max(256, len(reference) // _MAX_WIDTH)
    levels = [
        20 * np.log10(np.maximum(mel_magnitudes(wav, sample_rate, 1024, hop_length, NUM_BANDS), 1e-7)).T[::-1]
        for wav in (reference, estimate)
    ]  # (M, N)
    loudest = max(level.max() for level in levels)
    first, second = (np.clip((level - loudest + RANGE_DB) / RANGE_DB, 0, 1) * 255 for level in levels)
    return png(first), png(second)


def histogram(values: Sequence[float], mean: float, interval: tuple[float, float] | None, title: str) -> str:
    """An SVG of how values are distributed, with their mean and its interval."""
    width, height, num_bins = 220.0, 44.0, 24
    low, high = min(values), max(values)
    if high - low <= SMALLEST_RANGE * max(abs(low), abs(high)):
        return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img"><title>{escape(title)}</title></svg>'
    counts, _ = np.histogram(values, bins=num_bins, range=(low, high))
    step = width / num_bins

    def place(value: float) -> float:
        return (min(max(value, low), high) - low) / (high - low) * width

    bars = "".join(
        f'<rect x="{number * step:.1f}" y="{height - height * count / counts.max():.1f}" width="{step - 1:.1f}" '
        f'height="{height * count / counts.max():.1f}"/>'
        for number, count in enumerate(counts)
    )
    band = ""
    if interval is not None:
        left, right = (place(value) for value in interval)
        span = f'x="{left:.1f}" y="0" width="{max(right - left, 0.5):.1f}" height="{height:.0f}"'
        band = f'<rect fill="#dd5522" fill-opacity=".35" {span}/>'
    x = place(mean)
    line = f'<line stroke="#dd5522" stroke-width="1.5" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height:.0f}"/>'
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img"><title>{escape(title)}</title>{band}'
        f'<g fill="#5588aa">{bars}</g>{line}</svg>'
    )
