"""A file arrives whole and right, or not at all, whatever the server does."""

import shutil

import pytest

from codec.errors import CorpusError
from codec.preparation import download as downloading
from codec.preparation.download import download, require_space


def fetch(server, target, *manners, **options):
    options = {"md5": server.md5, "num_bytes": len(server.data), "pause": 0.0} | options
    download([f"{server.url(manner)}/{target.name}" for manner in manners], target, **options)


def ranges(server):
    return [wanted for _, wanted in server.requests]


@pytest.mark.parametrize("manner", ["good", "lengthless", "rangeless", "busy"])
def test_whole_file_arrives(manner, server, tmp_path):
    fetch(server, tmp_path / "a.tar.gz", manner)
    assert (tmp_path / "a.tar.gz").read_bytes() == server.data
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("num_bytes", [None, "known"])
def test_cut_connections_are_continued_where_they_ended(num_bytes, server, tmp_path):
    fetch(server, tmp_path / "a", "cut", num_bytes=num_bytes and len(server.data))
    assert (tmp_path / "a").read_bytes() == server.data
    assert ranges(server) == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]


def test_next_call_goes_on_with_what_is_there(server, tmp_path):
    (tmp_path / "a.part").write_bytes(server.data[:1234])
    fetch(server, tmp_path / "a", "good")
    assert ranges(server) == ["bytes=1234-"]
    assert (tmp_path / "a").read_bytes() == server.data


def test_next_mirror_goes_on_with_what_is_there(server, tmp_path):
    server.cut_after = 0
    (tmp_path / "a.part").write_bytes(server.data[:1234])
    fetch(server, tmp_path / "a", "cut", "good")
    assert server.requests[-1] == ("/good/a", "bytes=1234-")


@pytest.mark.parametrize("left_over", [b"of another file", b"of another file" * 100_000])
def test_left_over_of_another_file_is_found_and_fetched_again(left_over, server, tmp_path):
    (tmp_path / "a.part").write_bytes(left_over)
    fetch(server, tmp_path / "a", "good", num_bytes=None)
    assert (tmp_path / "a").read_bytes() == server.data


def test_server_without_ranges_sends_all_again(server, tmp_path):
    (tmp_path / "a.part").write_bytes(server.data[:1234])
    fetch(server, tmp_path / "a", "rangeless")
    assert (tmp_path / "a").read_bytes() == server.data


def test_server_that_always_cuts_at_the_same_place_is_given_up(server, tmp_path):
    with pytest.raises(CorpusError, match=r"a could not be fetched: .*cuts the connection, 3 times in a row"):
        fetch(server, tmp_path / "a", "cut-rangeless")
    assert ranges(server) == [None, "bytes=100000-", "bytes=100000-"]


@pytest.mark.parametrize(
    ("manner", "options", "message"),
    [
        ("missing", {}, "/missing/a answers 404"),
        ("wrong", {}, "serves a file with the MD5 sum [0-9a-f]{32}, the published one is [0-9a-f]{32}"),
        ("short", {}, "offers 307199 bytes, 307200 are published"),
        ("short", {"num_bytes": None}, "serves a file with the MD5 sum"),
    ],
)
def test_what_is_wrong_is_named_and_the_next_mirror_is_tried(manner, options, message, server, tmp_path):
    with pytest.raises(CorpusError, match=message):
        fetch(server, tmp_path / "a", manner, **options)
    assert not (tmp_path / "a").exists()
    fetch(server, tmp_path / "a", manner, "good", **options)
    assert (tmp_path / "a").read_bytes() == server.data


def test_mirror_that_is_not_there_is_named(server, tmp_path):
    server.close()
    with pytest.raises(CorpusError, match="cannot be reached"):
        fetch(server, tmp_path / "a", "good")


def test_full_disk_is_no_fault_of_the_mirror(server, tmp_path):
    (tmp_path / "a.part").mkdir()  # stands for any refusal to write
    with pytest.raises(OSError, match="directory"):
        fetch(server, tmp_path / "a", "good", num_bytes=None)


def test_too_little_space_is_refused_beforehand(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 10**9)
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: usage)
    require_space(tmp_path, 4e9, "unpacking")
    with pytest.raises(CorpusError, match=r"unpacking takes about 6\.0 GB and 5\.0 GB are free"):
        require_space(tmp_path, 6e9, "unpacking")
