"""What follows from the rates of a codec, whether a model, the header of its codes or only a description says them."""

from typing import TYPE_CHECKING


class Rates:
    """To be inherited by what has `sample_rate` (Hz), `hop_length` (samples per frame) and `codebook_size` (K)."""

    if TYPE_CHECKING:  # fields of the one heir, properties of the other

        @property
        def sample_rate(self) -> int: ...

        @property
        def hop_length(self) -> int: ...

        @property
        def codebook_size(self) -> int: ...

    @property
    def frame_rate(self) -> float:
        """Frames, and so codes, per second."""
        return self.sample_rate / self.hop_length

    @property
    def bits_per_code(self) -> int:
        """Bits that hold any code: 12 for a codebook of 4096."""
        return (self.codebook_size - 1).bit_length()

    @property
    def bitrate(self) -> float:
        """Of the codes alone, kbit/s."""
        return self.bits_per_code * self.frame_rate / 1000
