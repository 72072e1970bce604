"""Archives are not trusted."""

import gzip
import io
import shutil
import tarfile

import pytest
from small_corpus import member

from codec.errors import CorpusError
from codec.preparation.archives import require_space, unpack


def pack(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for info, data in members:
            tar.addfile(info, data)
    return path


GOOD = [("corpus/a/b.wav", b"sound" * 1000), ("corpus/list.txt", b"text")]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_files_come_out_as_they_went_in(mode, tmp_path):
    archive = pack(tmp_path / "a.tar", *(member(name, data) for name, data in GOOD), mode=mode)
    unpack(archive, tmp_path / "out")
    files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [(path.relative_to(tmp_path / "out").as_posix(), path.read_bytes()) for path in files] == GOOD


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("../evil.wav"), r"'\.\./evil\.wav' would be unpacked outside its folder"),
        (member("corpus/../../evil.wav"), "would be unpacked outside"),
        (member("/tmp/evil.wav"), r"'/tmp/evil\.wav' would be unpacked outside"),
        (member("..\\evil.wav"), "would be unpacked outside"),
        (member("C:evil.wav"), "would be unpacked outside"),
        (member("corpus/link", kind=tarfile.SYMTYPE, link="/etc"), r"'corpus/link' is a link"),
        (member("corpus/link", kind=tarfile.LNKTYPE, link="corpus/list.txt"), "is a link"),
        (member("corpus/pipe", kind=tarfile.FIFOTYPE), "is neither file nor folder"),
        (member("corpus/disk", kind=tarfile.BLKTYPE), "is neither file nor folder"),
    ],
    ids=lambda value: value[0].name if isinstance(value, tuple) else "",
)
def test_member_that_could_do_harm_is_refused_and_nothing_is_left(bad, message, tmp_path):
    archive = pack(tmp_path / "a.tar.gz", member(*GOOD[0]), bad, member(*GOOD[1]))
    with pytest.raises(CorpusError, match=message):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2"])
def test_damaged_archive_is_refused_wherever_the_damage_is(mode, tmp_path):
    whole = pack(tmp_path / "whole.tar.gz", *(member(name, data) for name, data in GOOD), mode=mode).read_bytes()
    archive = tmp_path / "a.tar.gz"
    damaged = [whole[:length] for length in (0, 1, 20, len(whole) // 2, len(whole) - 9, len(whole) - 1)]
    damaged += [whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:], b"<html>not found</html>"]
    for data in damaged:
        archive.write_bytes(data)
        with pytest.raises(CorpusError, match=r"a\.tar\.gz: is cut off, damaged or no archive"):
            unpack(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_header_that_cannot_be_read_is_no_end_of_the_archive(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in GOOD:
            tar.addfile(*member(name, data))
    data = bytearray(stream.getvalue())
    data[data.index(b"corpus/list.txt")] ^= 1  # the second header's own sum no longer fits
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(CorpusError, match="no header that can be read"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "out")


def test_interruption_leaves_nothing(tmp_path):
    archive = pack(tmp_path / "a.tar.gz", *(member(name, data) for name, data in GOOD))

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out", interrupt)
    assert not (tmp_path / "out").exists()


def pack_with_headers(path, headers):
    info, data = member(*GOOD[0])
    info.pax_headers = headers
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, data)
    return path


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"GNU.sparse.map": "0,5000", "GNU.sparse.size": str(3 << 30)}, "'corpus/a/b.wav' is a sparse file"),
        ({"GNU.sparse.map": "a,b"}, "damaged or no archive"),
        ({"GNU.sparse.size": "zz"}, "damaged or no archive"),
        ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, "damaged or no archive"),
    ],
    ids=["3 GiB of zeros", "map", "size", "map in the data"],
)
def test_sparse_member_is_refused_before_it_fills_the_disk(headers, message, tmp_path):
    archive = pack_with_headers(tmp_path / "a.tar", headers)
    with pytest.raises(CorpusError, match=message):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("time", ["1e30", "nan", "-1e30"])
def test_a_time_that_no_file_can_have_does_no_harm(time, tmp_path):
    unpack(pack_with_headers(tmp_path / "a.tar", {"mtime": time}), tmp_path / "out")
    assert (tmp_path / "out" / GOOD[0][0]).read_bytes() == GOOD[0][1]


def test_files_keep_their_times(tmp_path):
    unpack(pack_with_headers(tmp_path / "a.tar", {"mtime": "1234567890.5"}), tmp_path / "out")
    assert (tmp_path / "out" / GOOD[0][0]).stat().st_mtime == 1234567890.5


def test_too_little_space_is_refused_beforehand(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    require_space(tmp_path, 4e9, "unpacking")
    with pytest.raises(CorpusError, match=r"unpacking takes about 6\.0 GB and 5\.0 GB are free"):
        require_space(tmp_path, 6e9, "unpacking")
