"""Stored bytes: golden files decode for ever, each malformed file has its own message.

Both were made once with `second_reader.build`. Golden files are never made again; a new version adds some.
"""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from codec.bitstream import Header, read_codes, write_codes
from codec.errors import FormatError

DATA = Path(__file__).parent.parent / "data"
GOLDEN = sorted((DATA / "golden").glob("*.codes"))
MALFORMED = {
    "empty": "the file is empty",
    "wav": "not a .codes file: it is a WAV",
    "npz": "not a .codes file: it is a zip archive or .npz",
    "npy": "not a .codes file: it is a NumPy array",
    "text": "not a .codes file: it is a text file",
    "binary": "not a .codes file: it begins with the bytes 80 81 82 83",
    "text-mode": "not a .codes file: line ends were rewritten by a transfer in text mode",
    "newer-version": "made with version 2 of the format, this program reads version 1",
    "version-0": "the header is damaged beyond repair",
    "sample-rate-0": "the header is invalid: the sample rate",
    "sample-rate-huge": "the header is invalid: the sample rate",
    "hop-0": "the header is invalid: the hop length",
    "codebook-1": "the header is invalid: the codebook size",
    "block-frames-0": "the header is invalid: the block frames",
    "block-frames-huge": "the header is invalid: the block frames",
    "block-frames-odd": "the header is invalid: block frames must be a multiple of 8",
    "name-not-utf8": "the header is invalid: the model name is not UTF-8",
    "name-control": r"the header is invalid: the model name .* got 'a\\x1b\[2Jb'",
    "name-too-long": "the header is damaged beyond repair",
    "header-cut": "cut off inside the header, after 20 bytes",
    "header-flipped": "the header is damaged; copy the file again, or read it with recovery",
    "header-destroyed": "the header is damaged beyond repair",
    "block-flipped": r"damaged in block 1, which begins at frame 8 \(0.1 s\)",
    "block-tag-flipped": "damaged in block 1",
    "cut-in-block": "cut off inside block 1",
    "cut-between-blocks": "cut off after 16 frames",
    "cut-in-end": "the end record after 24 frames is cut off",
    "cut-in-last-block": "cut off inside block 3",
    "last-block-missing": "cut off inside block 3",
    "end-flipped": "the end record after 24 frames is damaged",
    "last-block-flipped": "damaged in block 3",
    "end-too-many-frames": "the end record counts 4294967295 frames, which does not fit the 3 full blocks",
    "end-too-many-samples": "the end record after 24 frames is damaged",
    "block-missing": "damaged in block 1",
    "block-repeated": "damaged in block 2",
    "blocks-swapped": "damaged in block 0",
    "block-of-another-file": "damaged in block 1",
    "code-beyond-codebook": "damaged in block 0",
    "unused-bits-set": "damaged in block 1",
    "bytes-appended": "after the last of 29 frames bytes follow that are not codes",
    "two-files": "after the last of 29 frames another .codes file follows; separate them",
}


def test_all_stored_files_are_tested():
    assert {path.stem for path in (DATA / "malformed").glob("*.codes")} == set(MALFORMED)
    assert len(GOLDEN) == len(list((DATA / "golden").glob("*.json"))) == 7


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_file_decodes(path: Path):
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    file = read_codes(path)
    assert file.codes.tolist() == expected["codes"]
    assert file.num_samples == expected["num_samples"]
    assert file.header == Header(**expected["header"])
    assert not file.damage


@pytest.mark.parametrize("path", sorted((DATA / "golden").glob("v1-*.codes")), ids=lambda path: path.stem)
def test_version_1_is_still_written_byte_for_byte(path: Path):
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    stream = io.BytesIO()
    codes = np.array(expected["codes"], np.int64)
    write_codes(stream, codes, header=Header(**expected["header"]), num_samples=expected["num_samples"])
    assert stream.getvalue() == path.read_bytes()


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file_has_its_own_message(name: str):
    path = DATA / "malformed" / f"{name}.codes"
    with pytest.raises(FormatError, match=f"{name}.codes: {MALFORMED[name]}") as caught:
        read_codes(path)
    assert "\n" not in str(caught.value)
