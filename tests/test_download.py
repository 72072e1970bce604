"""A file arrives whole and right, or not at all, whatever the server does."""

import http.client
import re
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest

from codec import download as downloading
from codec.download import download
from codec.errors import CodecError


def fetch(server, target, *manners, **options):
    options = {"checksum": server.md5, "num_bytes": len(server.data)} | options
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


def test_what_was_all_there_is_not_fetched_again(server, tmp_path):
    """As after a kill before it was checked, also where the size is not published."""
    (tmp_path / "a.part").write_bytes(server.data)
    fetch(server, tmp_path / "a", "good", num_bytes=None)
    assert ranges(server) == [f"bytes={len(server.data)}-"]
    assert (tmp_path / "a").read_bytes() == server.data


def test_next_mirror_goes_on_with_what_is_there(server, tmp_path):
    server.cut_after = 0
    (tmp_path / "a.part").write_bytes(server.data[:1234])
    fetch(server, tmp_path / "a", "cut", "good")
    assert server.requests[-1] == ("/good/a", "bytes=1234-")


@pytest.mark.parametrize("manner", ["good", "rangeless"])
@pytest.mark.parametrize("left_over", [b"of another file", b"of another file" * 100_000])
def test_left_over_of_another_file_is_found_and_fetched_again(left_over, manner, server, tmp_path):
    (tmp_path / "a.part").write_bytes(left_over)
    fetch(server, tmp_path / "a", manner, num_bytes=None)
    assert (tmp_path / "a").read_bytes() == server.data


def test_server_without_ranges_sends_all_again(server, tmp_path):
    (tmp_path / "a.part").write_bytes(server.data[:1234])
    fetch(server, tmp_path / "a", "rangeless")
    assert (tmp_path / "a").read_bytes() == server.data


def test_server_that_always_cuts_at_the_same_place_is_given_up(server, tmp_path):
    with pytest.raises(CodecError, match=r"a could not be fetched: .*cuts the connection, 4 times in a row"):
        fetch(server, tmp_path / "a", "cut-rangeless")
    assert ranges(server) == [None, "bytes=100000-", "bytes=100000-", "bytes=100000-"]


@pytest.mark.parametrize(
    ("manner", "options", "message"),
    [
        ("missing", {}, "/missing/a answers 404"),
        ("wrong", {}, "serves a file with the sum [0-9a-f]{32}, the published one is [0-9a-f]{32}"),
        ("short", {}, "offers 307199 bytes, 307200 are published"),
        ("short", {"num_bytes": None}, "serves a file with the sum"),
    ],
)
def test_what_is_wrong_is_named_and_the_next_mirror_is_tried(manner, options, message, server, tmp_path):
    with pytest.raises(CodecError, match=message):
        fetch(server, tmp_path / "a", manner, **options)
    assert not (tmp_path / "a").exists()
    fetch(server, tmp_path / "a", manner, "good", **options)
    assert (tmp_path / "a").read_bytes() == server.data


@pytest.mark.parametrize("address", ["openslr.org", "http://a..b", "http://[", "http://a b"])
def test_address_that_is_none_is_named(address, server, tmp_path):
    with pytest.raises(CodecError, match=rf"{re.escape(address)}/a is no address of a server"):
        download([f"{address}/a"], tmp_path / "a", server.md5)
    download([f"{address}/a", f"{server.url('good')}/a"], tmp_path / "a", server.md5)
    assert (tmp_path / "a").read_bytes() == server.data


def test_mirror_that_was_never_there_is_not_waited_for_long(server, tmp_path, monkeypatch):
    server.close()
    pauses = []
    monkeypatch.setattr(downloading.time, "sleep", pauses.append)
    with pytest.raises(CodecError, match=r"/good/a cannot be reached \(.*\), 3 times in a row$"):
        fetch(server, tmp_path / "a", "good")
    assert pauses == [1, 2]


def test_mirror_that_goes_away_is_waited_for_longer(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(downloading.time, "sleep", lambda seconds: pauses.append(seconds) or server.close())
    with pytest.raises(CodecError, match=r"cannot be reached \(.*\), 4 times in a row$"):
        fetch(server, tmp_path / "a", "cut")
    assert pauses == [1, 2, 4]
    assert (tmp_path / "a.part").read_bytes() == server.data[:100_000]


@pytest.mark.parametrize("reader", ["getresponse", "read"])
def test_encryption_that_breaks_is_a_fault_of_the_mirror(reader, server, tmp_path, monkeypatch):
    where = http.client.HTTPConnection if reader == "getresponse" else http.client.HTTPResponse
    unbroken, broken = getattr(where, reader), []

    def read(*arguments, **options):
        if len(broken) < 4:  # tries of the first mirror
            broken.append(ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC] bad record mac"))
            raise broken[-1]
        return unbroken(*arguments, **options)

    monkeypatch.setattr(where, reader, read)
    fetch(server, tmp_path / "a", "good", "good")
    assert (tmp_path / "a").read_bytes() == server.data


def test_sum_may_be_sha256(server, tmp_path):
    fetch(server, tmp_path / "a", "good", checksum=server.sha256)
    with pytest.raises(CodecError, match=f"the sum {server.sha256}, the published one is {'0' * 64}"):
        fetch(server, tmp_path / "b", "good", checksum="0" * 64)


def test_of_several_who_want_the_same_file_one_fetches_it(server, tmp_path):
    server.cut_after = 20_000
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: fetch(server, tmp_path / "a", "cut"), range(4)))
    assert (tmp_path / "a").read_bytes() == server.data
    assert len(server.requests) == 16


def test_full_disk_is_no_fault_of_the_mirror(server, tmp_path):
    (tmp_path / "a.part").mkdir()  # stands for any refusal to write
    with pytest.raises(OSError, match="directory"):
        fetch(server, tmp_path / "a", "good", num_bytes=None)
