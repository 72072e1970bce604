"""Every bit flipped, every cut: always found, never a wrong code, and recovery keeps the rest in its place."""

import dataclasses
import io
import random
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from second_reader import build, end

from codec.bitstream import HOLE, CodesFile, CodesReader, Damage, Header, read_codes, write_codes
from codec.errors import FormatError

HEADER = Header(24000, 320, 4096, "0123456789abcdef", "tiny", block_frames=8)
NUM_FRAMES, NUM_SAMPLES = 29, 29 * 320 - 7
CODES = np.array([(n * 617 + 5) % 4096 for n in range(NUM_FRAMES)])
RECORDS = build(CODES.tolist(), NUM_SAMPLES)  # header, blocks of 8, 8 and 8 frames, end record, block of 5 frames
STARTS = np.cumsum([0, *map(len, RECORDS)]).tolist()
WHOLE = b"".join(RECORDS)


def strict(data: bytes) -> CodesFile:
    return read_codes(io.BytesIO(data))


def recovered(data: bytes) -> CodesFile:
    return read_codes(io.BytesIO(data), recover=True)


def flipped(position: int, bit: int = 0, data: bytes = WHOLE) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def assert_kept(file: CodesFile, holes: list[range], num_frames: int = NUM_FRAMES) -> None:
    """All codes right and in their place, but for the frames in `holes`."""
    expected = CODES[:num_frames].copy()
    for hole in holes:
        expected[hole.start : hole.stop] = HOLE
    assert file.codes.tolist() == expected.tolist()
    assert file.damage.lost_frames == sum(map(len, holes))


def test_every_flipped_bit_is_found():
    for position in range(len(WHOLE)):
        for bit in range(8):
            with pytest.raises(FormatError, match="stream: "):
                strict(flipped(position, bit))


def test_every_cut_is_found():
    for size in range(len(WHOLE)):
        with pytest.raises(FormatError, match=r"empty|cut off|damaged beyond repair"):
            strict(WHOLE[:size])


def test_every_flipped_bit_costs_its_own_block_only():
    lost = [[], [range(0, 8)], [range(8, 16)], [range(16, 24)], [], [range(24, 29)]]
    for position in range(len(WHOLE)):
        record = int(np.searchsorted(STARTS, position, side="right")) - 1
        for bit in range(8):
            file = recovered(flipped(position, bit))
            assert_kept(file, lost[record])
            assert file.damage
            assert file.damage.is_header_repaired == (record == 0)
            assert file.damage.is_end_missing == (record == 4)
            assert file.damage.is_length_known
            assert file.num_samples == (NUM_FRAMES * 320 if record == 4 else NUM_SAMPLES)


def test_every_cut_keeps_the_blocks_before_it():
    for size in range(STARTS[1], len(WHOLE)):
        file = recovered(WHOLE[:size])
        if size >= STARTS[5]:  # the end record is there and says how long the last block is
            assert_kept(file, [range(24, 29)])
            assert file.num_samples == NUM_SAMPLES
            assert not file.damage.is_end_missing
        else:
            full, is_cut = divmod(min(size, STARTS[4]) - STARTS[1], STARTS[2] - STARTS[1])
            assert_kept(file, [range(full * 8, full * 8 + 8)] if is_cut else [], (full + (is_cut > 0)) * 8)
            assert file.damage.is_end_missing
            assert not file.damage.is_length_known


def test_a_cut_header_cannot_be_recovered():
    for size in range(STARTS[1]):
        with pytest.raises(FormatError, match=r"is empty|cut off inside the header"):
            recovered(WHOLE[:size])


@pytest.mark.parametrize("bytes_inserted", [1, 7, 17, 40, 300])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_inserted_bytes_cost_the_block_they_are_in(block, bytes_inserted):
    position = STARTS[1 + block] + 9
    file = recovered(WHOLE[:position] + b"BE" * bytes_inserted + WHOLE[position:])
    assert_kept(file, [range(block * 8, block * 8 + 8)])
    assert file.damage.has_extra_bytes
    assert file.num_samples == NUM_SAMPLES


@pytest.mark.parametrize("bytes_removed", [1, 7, 16])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_removed_bytes_cost_the_blocks_they_were_in(block, bytes_removed):
    position = STARTS[1 + block] + 1
    file = recovered(WHOLE[:position] + WHOLE[position + bytes_removed :])
    assert_kept(file, [range(block * 8, block * 8 + 8)])


@pytest.mark.parametrize(
    ("order", "holes"),
    [
        ([0, 1, 3, 4, 5], [range(8, 16)]),
        ([0, 3, 4, 5], [range(0, 16)]),
        ([0, 4, 5], [range(0, 24)]),
        ([0, 1, 1, 2, 3, 4, 5], []),
        ([0, 1, 2, 1, 3, 4, 5], []),
        ([0, 1, 3, 2, 4, 5], [range(8, 16)]),
    ],
    ids=["one missing", "two missing", "all missing", "repeated", "repeated later", "swapped"],
)
def test_blocks_are_never_moved(order, holes):
    data = b"".join(RECORDS[n] for n in order)
    with pytest.raises(FormatError, match="block"):
        strict(data)
    assert_kept(recovered(data), holes)


@pytest.mark.parametrize(("blocks_moved", "is_found"), [(64, True), (65, False)])
@pytest.mark.parametrize("way", ["removed", "inserted"])
def test_a_block_is_looked_for_within_64_of_its_place(way, blocks_moved, is_found):
    """And none, nor the end, is believed that says to be farther away, as a forged one would."""
    codes = [n % 4096 for n in range(70 * 8)]
    records = build(codes, len(codes) * 320)
    gap = b"" if way == "removed" else bytes(blocks_moved * len(records[1]))
    first_kept = 2 + blocks_moved if way == "removed" else 2
    known = recovered(b"".join([*records[:2], gap, *records[first_kept:]])).codes
    expected = codes[:8] + [HOLE] * (first_kept - 2) * 8 + codes[(first_kept - 1) * 8 :]
    if is_found:
        assert known.tolist() == expected
    else:
        assert known[:8].tolist() == codes[:8]
        assert (known[8:] == HOLE).all()


def test_where_a_block_is_looked_for_goes_by_its_own_offset_also_at_the_end_of_the_file():
    """Block 0, a damaged one, and in the third place, where the file is cut off, one at most 64 behind it."""
    codes = [n % 4096 for n in range(70 * 8)]
    header, *blocks = build(codes, len(codes) * 320)
    for number, is_found in ((66, True), (67, False)):
        known = recovered(header + blocks[0] + bytes(len(blocks[1])) + blocks[number]).codes
        assert (known != HOLE).sum() == (16 if is_found else 8)
        assert (known[-8:] == codes[number * 8 : number * 8 + 8]).all() == is_found


def test_overwritten_stretches_become_holes():
    for start in range(STARTS[1], STARTS[4]):
        for length in (1, 20, 60):
            stop = min(start + length, STARTS[4])
            file = recovered(WHOLE[:start] + bytes(stop - start) + WHOLE[stop:])
            hit = [n for n in range(3) if start < STARTS[2 + n] and stop > STARTS[1 + n]]
            kept = set(np.flatnonzero(file.codes != HOLE).tolist())
            assert kept >= set(range(NUM_FRAMES)) - {frame for n in hit for frame in range(n * 8, n * 8 + 8)}
            assert all(file.codes[n] == CODES[n] for n in kept)


@given(st.data())
def test_no_damage_gives_a_wrong_code(data):
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(STARTS[1], max(STARTS[1], len(damaged))))
        removed = data.draw(st.integers(0, 20))
        damaged[start : start + removed] = data.draw(st.binary(max_size=20))
    if bytes(damaged) == WHOLE:
        return
    with pytest.raises(FormatError, match="stream: "):
        strict(bytes(damaged))
    codes = recovered(bytes(damaged)).codes
    known = codes[:NUM_FRAMES] != HOLE
    assert (codes[:NUM_FRAMES][known] == CODES[: len(codes)][known]).all()
    assert (codes[NUM_FRAMES:] == HOLE).all()


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_give_codes_or_a_sentence(data, has_header):
    try:
        recovered(RECORDS[0] + data if has_header else data)
    except FormatError:
        assert not has_header


def test_holes_come_block_by_block_with_their_place():
    data = flipped(STARTS[3] + 2, data=flipped(STARTS[2] + 2))
    reader = CodesReader(io.BytesIO(data), recover=True)
    assert [(block.number, block.start, block.num_frames, block.is_hole) for block in reader] == [
        (0, 0, 8, False),
        (1, 8, 8, True),
        (2, 16, 8, True),
        (3, 24, 5, False),
    ]
    assert reader.damage == Damage(blocks=[1, 2], lost_frames=16)


def test_damaged_end_and_damaged_block_together():
    file = recovered(flipped(STARTS[4] + 3, data=flipped(STARTS[3] + 8)))
    assert_kept(file, [range(16, 24)])
    assert file.damage.is_end_missing
    assert file.damage.is_length_known


def test_the_last_block_keeps_its_place_where_bytes_before_a_damaged_end_are_missing():
    for bytes_removed in range(1, 8):  # less than half a block
        data = flipped(STARTS[4] + 3)
        file = recovered(data[: STARTS[3] + 2] + data[STARTS[3] + 2 + bytes_removed :])
        assert_kept(file, [range(16, 24)])


@pytest.mark.parametrize("bytes_removed", [1, 5, 11])
def test_an_end_record_that_lacks_bytes_costs_no_code(bytes_removed):
    start = STARTS[4]
    file = recovered(WHOLE[:start] + WHOLE[start + bytes_removed :])
    assert file.codes.tolist() == CODES.tolist()
    assert file.damage == Damage(is_end_missing=True)


@pytest.mark.parametrize("bytes_inserted", [1, 13, 200])
def test_an_end_record_with_more_bytes_costs_no_code_and_makes_no_hole(bytes_inserted):
    place = STARTS[4] + 3
    file = recovered(WHOLE[:place] + bytes(bytes_inserted) + WHOLE[place:])
    assert file.codes.tolist() == CODES.tolist()


@pytest.mark.parametrize("num_frames", [24, 0])
def test_damaged_end_without_a_last_block_loses_no_code(num_frames):
    data = b"".join(build(CODES[:num_frames].tolist(), num_frames * 320))
    for position in range(len(data) - 11, len(data)):
        file = recovered(flipped(position, data=data))
        assert_kept(file, [], num_frames)
        assert file.damage.is_end_missing


@pytest.mark.parametrize("bits", range(1, 9))
def test_damaged_end_leaves_the_exact_length_of_the_last_block(bits):
    for num_frames in range(1, 8):
        codes = [n % 2**bits for n in range(num_frames)]
        records = build(codes, num_frames * 320, codebook_size=2**bits)
        file = recovered(records[0] + flipped(2, data=records[1]) + records[2])
        assert file.codes.tolist() == codes


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_code_beyond_the_codebook_under_a_right_check_costs_its_block_only(block):
    """Two bits hold the code 3, which a codebook of three has not."""
    codes = [n % 3 for n in range(20)]
    codes[block * 8 + 2] = 3
    data = b"".join(build(codes, 20 * 320, codebook_size=3))
    with pytest.raises(FormatError, match=f"damaged in block {block}"):
        strict(data)
    holes = range(block * 8, min(block * 8 + 8, 20))
    file = recovered(data)
    assert file.codes.tolist() == [HOLE if n in holes else code for n, code in enumerate(codes)]
    assert file.damage == Damage(blocks=[block], lost_frames=len(holes))


def test_unused_bits_that_are_set_under_a_right_check_cost_the_last_block():
    records = build([0, 1, 0] * 3, 9 * 320, codebook_size=2)
    payload = bytes([records[-1][-1] | 1])
    check = zlib.crc32(records[0][-4:] + struct.pack(">IH", 1, 1) + payload)
    data = b"".join([*records[:-1], struct.pack(">I", check), payload])
    with pytest.raises(FormatError, match="damaged in block 1"):
        strict(data)
    assert recovered(data).codes.tolist() == [0, 1, 0, 0, 1, 0, 0, 1, HOLE]


def test_appended_bytes_are_reported_and_ignored():
    file = recovered(WHOLE + b"garbage")
    assert_kept(file, [])
    assert file.damage == Damage(has_extra_bytes=True)
    assert file.num_samples == NUM_SAMPLES


def test_a_large_file_with_many_damaged_blocks_keeps_all_others():
    rng = random.Random(0)
    header = dataclasses.replace(HEADER, block_frames=256, model="stream")
    codes = np.random.default_rng(0).integers(0, 4096, 100 * 256 + 17)
    stream = io.BytesIO()
    write_codes(stream, codes, header=header)
    data = bytearray(stream.getvalue())
    damaged = sorted(rng.sample(range(100), 30))
    for number in damaged:
        data[header.size + number * 389 + rng.randrange(389)] ^= 0x10
    file = recovered(bytes(data))
    assert file.damage.blocks == damaged
    expected = codes.copy()
    for number in damaged:
        expected[number * 256 : number * 256 + 256] = HOLE
    assert np.array_equal(file.codes, expected)


HOSTILE = pytest.mark.parametrize("filling", [b"B", b"E", b"\0", b"BE", b"C"])


def num_holes(data: bytes) -> int:
    return sum(block.is_hole for block in CodesReader(io.BytesIO(data), recover=True))


@HOSTILE
def test_hostile_filling_takes_linear_time(filling):
    data = RECORDS[0] + filling * (300_000 // len(filling))
    began = time.monotonic()
    assert num_holes(data) >= len(data) // 17 - 3
    assert time.monotonic() - began < 20  # about 1 s where nothing else runs; quadratic cost would be minutes


@HOSTILE
def test_hostile_filling_takes_bounded_memory(filling):
    data = RECORDS[0] + filling * (20_000 // len(filling))
    tracemalloc.start()
    try:
        assert num_holes(data) >= len(data) // 17 - 3
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("num_frames", [2**32 - 1, 10_000 * 8])
def test_forged_lengths_claim_no_memory(num_frames):
    data = b"".join(RECORDS[:4]) + end(RECORDS[0][-4:], num_frames, 1)
    with pytest.raises(FormatError, match="does not fit the 3 full blocks"):
        strict(data)
    assert len(recovered(data).codes) <= 32


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (Damage(), "no damage"),
        (Damage(blocks=[3], lost_frames=256), "256 frames (3.4 s) lost in block 3"),
        (Damage(blocks=[3, 4], lost_frames=512), "512 frames (6.8 s) lost in blocks 3, 4"),
        (Damage(blocks=[*range(9)], lost_frames=72), "72 frames (1.0 s) lost in blocks 0, 1, 2, 3, 4, 5, 6, 7, ..."),
        (
            Damage(is_end_missing=True, is_length_known=False, is_header_repaired=True, has_extra_bytes=True),
            "the end is missing, and with it an unknown number of frames; one wrong byte in the header was repaired; "
            "bytes that belong to no block were skipped",
        ),
        (Damage(is_end_missing=True), "the end record is damaged, so the last frame is kept in full"),
    ],
)
def test_damage_is_described_in_one_line(damage, sentence):
    assert damage.describe(75.0) == sentence
