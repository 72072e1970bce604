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


def test_a_copy_that_keeps_size_and_time_is_another_file(speech: Path, tmp_path: Path):
    copy = Path(shutil.copy2(speech, tmp_path))
    assert (copy.stat().st_size, copy.stat().st_mtime_ns) == (speech.stat().st_size, speech.stat().st_mtime_ns)
    assert file_state(copy) != file_state(speech)
    assert file_state(copy) == file_state(copy)
