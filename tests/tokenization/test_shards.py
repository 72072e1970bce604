"""What a shard remembers of a file that it could not use, and what a folder lacks."""

import dataclasses
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from codec.errors import FormatError
from codec.tokenization.shards import Tokens, TokensInfo, file_state, write_info, write_shard


def test_what_is_missing_is_known_from_what_is_there(tmp_path: Path):
    """A count that nobody means would be looked for until the end of days."""
    info = TokensInfo("tiny", "0" * 16, 24000, 320, 4096, "float32", 10**18, 10, "0" * 16)
    write_info(tmp_path, info)
    for number in (0, 1, 3):
        write_shard(tmp_path, number, [(f"{number}", np.array([1]), 320, "anna", "train")], [], info.dtype)
    with pytest.raises(FormatError, match=f"{10**17 - 3} of {10**17} shards are missing, the first is 00002"):
        Tokens(tmp_path)


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    """Two utterances, of two codes and of one."""
    info = TokensInfo("tiny", "0" * 16, 24000, 320, 4096, "float32", 2, 10, "0" * 16)
    write_info(tmp_path, info)
    utterances = [("a", np.array([1, 2]), 640, "anna", "train"), ("b", np.array([3]), 320, "ben", "train")]
    write_shard(tmp_path, 0, utterances, [], info.dtype)
    return Tokens(tmp_path)


def test_tables_of_shards_that_cannot_be_are_passed_over(tokens: Tokens, tmp_path: Path):
    write_shard(tmp_path, 1, [("c", np.array([4]), 320, "anna", "train")], [], tokens.info.dtype)
    again = Tokens(tmp_path)
    assert (again.shards, list(again)) == ([(tmp_path, 0)], ["a", "b"])


def test_a_shard_that_is_being_replaced_is_not_there(tokens: Tokens, tmp_path: Path):
    (tmp_path / "00000.failed.tsv").mkdir()  # so that the codes are written, and the table is not
    with pytest.raises(OSError, match=r"00000\.failed\.tsv"):
        write_shard(tmp_path, 0, [("a", np.array([4]), 320, "anna", "train")], [], tokens.info.dtype)
    assert np.load(tmp_path / "00000.npy").tolist() == [4]
    assert Tokens(tmp_path, partial=True).shards == []


@pytest.mark.parametrize(("codebook_size", "dtype"), [(2, "<u2"), (65536, "<u2"), (65537, "<u4")])
def test_codes_are_stored_in_the_fewest_whole_bytes(codebook_size: int, dtype: str):
    assert TokensInfo("tiny", "0" * 16, 24000, 320, codebook_size, "float32", 2, 10, "0" * 16).dtype.str == dtype


def test_codes_belong_to_the_caller(tokens: Tokens):
    codes = tokens["b"]
    codes += 1
    assert (codes.tolist(), tokens["b"].tolist()) == ([4], [3])


def test_codes_that_vanish_or_are_cut_off_after_opening_are_named(tokens: Tokens, tmp_path: Path):
    path = tmp_path / "00000.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"00000\.npy: damaged, it ends before the codes of b do; run codec tokenize"):
        tokens["b"]
    assert tokens["a"].tolist() == [1, 2]
    path.unlink()
    with pytest.raises(FormatError, match=r"00000\.npy: cannot be read \(.*No such file"):
        tokens["a"]


def test_a_shard_that_is_made_anew_is_not_called_damaged(tokens: Tokens, tmp_path: Path):
    write_shard(tmp_path, 0, [("b", np.array([3, 2, 1]), 960, "ben", "train")], [], tokens.info.dtype)
    with pytest.raises(FormatError, match=r"00000\.npy: was made anew since these tokens were opened; open them again"):
        tokens["b"]
    assert Tokens(tmp_path, partial=True)["b"].tolist() == [3, 2, 1]


def test_a_shard_that_is_taken_away_while_tokens_are_opened_is_none_that_is_there(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """To be made anew, between a look at the folder and a look at its tables."""
    names = os.listdir(tmp_path)
    (tmp_path / "00000.tsv").unlink()
    monkeypatch.setattr(os, "listdir", lambda folder: names)
    there = Tokens(tmp_path, partial=True)
    assert (there.shards, len(there)) == ([], 0)
    with pytest.raises(FormatError, match=r"00000\.tsv: cannot be read"):
        Tokens(tmp_path)


def test_tokens_are_read_wherever_their_process_goes(tokens: Tokens, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    relative = Tokens(tmp_path.name)
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(relative))["a"].tolist() == [1, 2]


@pytest.mark.parametrize("name", ["00000.npy", "00000.tsv"])
def test_tokens_that_the_system_refuses_are_not_to_be_made_again(tokens: Tokens, tmp_path: Path, name: str):
    path = tmp_path / name
    path.unlink()
    path.symlink_to(path)  # even for root: too many levels of symbolic links
    with pytest.raises(FormatError, match=rf"{name}: cannot be read \(Too many levels of symbolic links\)$"):
        Tokens(tmp_path)


@pytest.fixture
def further(tmp_path: Path, tokens: Tokens) -> Path:
    """A folder of tokens beside the others: of a new speaker and of one who is known, in two shards of three."""
    info = dataclasses.replace(tokens.info, utterances=3, utterances_per_shard=1, model="renamed")
    write_info(tmp_path / "further", info)
    for number, (id, codes, speaker) in enumerate([("d", [4, 5, 6], "dan"), ("c", [7], "ben")]):
        utterances = [(id, np.array(codes), 320 * len(codes), speaker, "dev")]
        write_shard(tmp_path / "further", number, utterances, [], info.dtype)
    return tmp_path / "further"


def test_several_folders_are_read_as_one(tokens: Tokens, tmp_path: Path, further: Path):
    with pytest.raises(FormatError, match="further: 1 of 3 shards are missing, the first is 00002"):
        Tokens(tmp_path, further)
    both = pickle.loads(pickle.dumps(Tokens(tmp_path, str(further), partial=True)))
    assert [(id, codes.tolist()) for id, codes in both.items()] == [
        ("a", [1, 2]),
        ("b", [3]),
        ("d", [4, 5, 6]),
        ("c", [7]),
    ]
    assert both.places.speakers == ["anna", "ben", "dan"]
    assert both.places.speakers[:2] == tokens.places.speakers  # which keep their numbers
    assert both.places.speaker_numbers.tolist() == [0, 1, 2, 1]
    assert both.places.parts == ["train", "dev"]
    assert both.places.part_numbers.tolist() == [0, 0, 1, 1]
    assert both.places.samples.tolist() == [640, 320, 960, 320]
    assert both.shards == [(tmp_path, 0), (further, 0), (further, 1)]
    assert both.places["c"] == Tokens(further, partial=True).places["c"]
    reader = both.reader("d")
    assert (reader.header, reader.num_samples) == (tokens.info.header, 960)
    np.save(further / "00000.npy", np.array([4, 5, 7], "<u2"))
    with pytest.raises(FormatError, match=r"further.00000\.npy: damaged, the codes of d are not those"):
        both["d"]


@pytest.mark.parametrize(
    ("name", "value"), [("fingerprint", "1" * 16), ("precision", "bf16"), ("codebook_size", 9), ("refine", 2)]
)
def test_folders_that_were_made_otherwise_are_not_read_as_one(tokens, tmp_path, further, name, value):
    write_info(further, dataclasses.replace(tokens.info, utterances=2, **{name: value}))
    with pytest.raises(FormatError, match=f"further: {name} is {value}, that of .* is {getattr(tokens.info, name)}; "):
        Tokens(tmp_path, further, partial=True)


def test_an_utterance_of_two_folders_is_refused_by_name(tokens: Tokens, tmp_path: Path, further: Path):
    with pytest.raises(FormatError, match=r"00000\.tsv: has the utterance 'a', as .*00000\.tsv has"):
        Tokens(tmp_path, tmp_path)
    # The first two have the same CRC-32.
    for number, ids in enumerate([("plumless", "buckeroo"), ("c", "plumless")]):
        utterances = [(id, np.array([1]), 320, "dan", "train") for id in ids]
        write_shard(further, number, utterances, [], tokens.info.dtype)
    message = r"further.00001\.tsv: has the utterance 'plumless', as .*further.00000\.tsv has; an id must be unique"
    with pytest.raises(FormatError, match=message):
        Tokens(tmp_path, further, partial=True)


def test_tokens_are_compared_as_what_they_are_and_not_by_all_their_codes(tokens: Tokens, tmp_path: Path):
    assert tokens == tokens
    assert tokens != Tokens(tmp_path)
    assert {tokens: 1}[tokens] == 1


def test_a_copy_that_keeps_size_and_time_is_another_file(speech: Path, tmp_path: Path):
    copy = Path(shutil.copy2(speech, tmp_path))
    assert (copy.stat().st_size, copy.stat().st_mtime_ns) == (speech.stat().st_size, speech.stat().st_mtime_ns)
    assert file_state(copy) != file_state(speech)
    assert file_state(copy) == file_state(copy)
