"""What a shard remembers of a file that it could not use, and what a folder lacks."""

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


def test_codes_belong_to_the_caller(tokens: Tokens):
    codes = tokens["b"]
    codes += 1
    assert (codes.tolist(), tokens["b"].tolist()) == ([4], [3])


def test_codes_that_vanish_or_are_cut_off_after_opening_are_named(tokens: Tokens):
    path = tokens.folder / "00000.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"00000\.npy: damaged, it ends before the codes of b do; run codec tokenize"):
        tokens["b"]
    assert tokens["a"].tolist() == [1, 2]
    path.unlink()
    with pytest.raises(FormatError, match=r"00000\.npy: cannot be read \(.*No such file"):
        tokens["a"]


def test_tokens_are_compared_as_what_they_are_and_not_by_all_their_codes(tokens: Tokens):
    assert tokens == tokens
    assert tokens != Tokens(tokens.folder)
    assert {tokens: 1}[tokens] == 1


def test_a_copy_that_keeps_size_and_time_is_another_file(speech: Path, tmp_path: Path):
    copy = Path(shutil.copy2(speech, tmp_path))
    assert (copy.stat().st_size, copy.stat().st_mtime_ns) == (speech.stat().st_size, speech.stat().st_mtime_ns)
    assert file_state(copy) != file_state(speech)
    assert file_state(copy) == file_state(copy)
