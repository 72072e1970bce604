"""What a shard remembers of a file that it could not use."""

import shutil
from pathlib import Path

from codec.tokenization.shards import file_state


def test_a_copy_that_keeps_size_and_time_is_another_file(speech: Path, tmp_path: Path):
    copy = Path(shutil.copy2(speech, tmp_path))
    assert (copy.stat().st_size, copy.stat().st_mtime_ns) == (speech.stat().st_size, speech.stat().st_mtime_ns)
    assert file_state(copy) != file_state(speech)
    assert file_state(copy) == file_state(copy)
