"""Files appear whole or not at all, and where they are meant to."""

import os

import pytest

from codec.output import check_output, exists, open_output


def test_existing_file_is_kept_unless_told_otherwise(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="already exists"), open_output(path):
        pass
    assert path.read_bytes() == b"old"
    with open_output(path, overwrite=True) as stream:
        stream.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(FileExistsError, match="already exists"), open_output(path) as stream:
        stream.write(b"ours")
        path.write_bytes(b"theirs")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a", b"theirs")]


def test_link_to_nothing_is_there_too(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError, match="already exists"), open_output(tmp_path / "link"):
        pass
    assert not (tmp_path / "target").exists()


def test_only_what_the_system_says_is_not_there_does_not_exist(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "to nothing").symlink_to("nothing")
    assert [exists(tmp_path / name) for name in ("a", "b", "a/b", "b/c", "to nothing")] == [True, *4 * [False]]
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="circle"):
        exists(tmp_path / "circle")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, ValueError])
def test_interrupted_output_leaves_the_old_file_and_nothing_else(tmp_path, interruption):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(interruption), open_output(path, overwrite=True) as stream:
        stream.write(b"half")
        raise interruption
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_link_is_followed_and_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with open_output(link, overwrite=True) as stream:
        stream.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix", reason="has no such permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_permissions_of_a_replaced_file_are_kept(tmp_path, mode):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    with open_output(path, overwrite=True) as stream:
        stream.write(b"new")
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {mode}  # meanwhile as well
    assert path.stat().st_mode & 0o777 == mode
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_replaced_file_stays_its_owners(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    os.chown(path, 65534, 65533)
    path.chmod(0o640)
    with open_output(path, overwrite=True) as stream:
        stream.write(b"new")
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (65534, 65533, 0o640)


def test_output_that_cannot_be_meant_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a directory"), open_output(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match="no such folder"), open_output(tmp_path / "no" / "file"):
        pass


def test_either_separator_at_the_end_means_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "altsep", "\\")  # Windows has two
    for separator in (os.sep, os.altsep):
        with pytest.raises(FileNotFoundError, match="no such folder; make it first"):
            check_output(f"{tmp_path}/new{separator}")
