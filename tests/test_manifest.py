"""The list of utterances: what is written is read, and a wrong line is named."""

import dataclasses
import io
import os
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import soundfile

from codec import audio
from codec.errors import CorpusError
from codec.manifest import (
    Utterance,
    can_stand_in_manifest,
    check_manifest,
    id_of,
    is_unknown,
    read_manifest,
    read_rows,
    require_file_names,
    speaker_of,
    write_manifest,
)

HEADER = "id\tpath\tseconds\tsamples\tsample_rate\tspeaker\tpart\n"
GOOD = "a\ta.wav\t2.000\t48000\t24000\t14\ttrain\n"


def utterance(name: str = "a", path: Path = Path("a.wav"), **changes) -> Utterance:
    return dataclasses.replace(Utterance(name, path, 48000, 24000, "14", "train"), **changes)


def test_what_is_written_is_read_back_sorted(tmp_path):
    written = [utterance("b", tmp_path / "x" / "b.wav"), utterance("a", tmp_path / "ä ö.wav", speaker="Zoë")]
    write_manifest(tmp_path / "m.tsv", written)
    assert read_manifest(tmp_path / "m.tsv") == [written[1], written[0]]


def test_line_is_the_documented_one(tmp_path):
    write_manifest(tmp_path / "m.tsv", [utterance(path=tmp_path / "a.wav")])
    assert (tmp_path / "m.tsv").read_bytes() == (HEADER + GOOD).encode()


def test_corpus_and_manifests_can_be_moved_together(tmp_path):
    corpus = tmp_path / "here"
    write_manifest(corpus / "manifests" / "m.tsv", [utterance(path=corpus / "audio" / "a.wav")], root=corpus)
    assert "\t../audio/a.wav\t" in (corpus / "manifests" / "m.tsv").read_text()
    corpus.rename(tmp_path / "there")
    moved = tmp_path / "there" / "manifests"
    assert [item.path for item in read_manifest(moved / "m.tsv")] == [moved / ".." / "audio" / "a.wav"]


def test_paths_of_rows_are_those_of_utterances(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    for name in ("m.tsv", Path("lists") / "m.tsv"):
        lines = [GOOD, "b\t../b.wav\t2.000\t48000\t24000\t14\ttrain\n", f"c\t{tmp_path}/c.wav\t1.0\t9\t9\ts\tp\n"]
        Path(name).write_text(HEADER + "".join(lines))
        paths = [path for _, path, *_ in read_rows(name)]
        assert paths == [str(Path(name).parent / line.split("\t")[1]) for line in lines]
        assert [utterance.path for utterance in read_manifest(name)] == [Path(path) for path in paths]


def test_path_outside_the_root_is_absolute(tmp_path):
    write_manifest(tmp_path / "lists" / "m.tsv", [utterance(path=tmp_path / "a.wav")])
    assert f"\t{(tmp_path / 'a.wav').as_posix()}\t" in (tmp_path / "lists" / "m.tsv").read_text()


def test_further_columns_and_windows_line_ends_are_allowed(tmp_path):
    text = HEADER.replace("part", "text\tpart") + GOOD.replace("train", "hello\ttrain")
    (tmp_path / "m.tsv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_manifest(tmp_path / "m.tsv") == [utterance(path=tmp_path / "a.wav")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"m\.tsv:1: is not a manifest, its first line lacks the columns id, path"),
        ("path\tsplit\n", r"m\.tsv:1: is not a manifest, its first line lacks the columns id, seconds"),
        (HEADER, r"m\.tsv: has no utterances"),
        (HEADER + GOOD + "b\tb.wav\n", r"m\.tsv:3: has 2 columns, the header has 7"),
        (HEADER + GOOD + "\n", r"m\.tsv:3: has 1 columns"),
        (HEADER + GOOD.replace("48000", "-1"), r"m\.tsv:2: samples must be a positive integer, got '-1'"),
        (HEADER + GOOD.replace("48000", "1" * 400), r"m\.tsv:2: samples must be a positive integer"),
        (HEADER + GOOD.replace("48000", "1" * 5000), r"m\.tsv:2: samples must be a positive integer"),
        (HEADER + GOOD.replace("24000", "²"), r"m\.tsv:2: sample_rate must be a positive integer, got '²'"),
        (HEADER + GOOD.replace("2.000", "2.2"), r"m\.tsv:2: seconds must be samples / sample_rate = 2.000, got '2.2'"),
        (HEADER + GOOD.replace("2.000", "1.997"), r"m\.tsv:2: seconds must be"),
        (HEADER + GOOD.replace("2.000", "nan"), r"m\.tsv:2: seconds must be"),
        (HEADER + GOOD.replace("2.000", "long"), r"m\.tsv:2: seconds must be"),
        (HEADER + GOOD.replace("14", ""), r"m\.tsv:2: speaker is empty"),
        (HEADER + GOOD.replace("14", "1\r4"), r"m\.tsv:2: speaker '1\\r4' has a line break"),
        (HEADER + GOOD + GOOD, r"m\.tsv:3: id 'a' is also that of line 2"),
        (HEADER.encode() + b"\xff\xfe", r"is not UTF-8 text"),
    ],
)
def test_wrong_line_is_named(text, message, tmp_path):
    (tmp_path / "m.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CorpusError, match=message):
        read_manifest(tmp_path / "m.tsv")


def test_missing_manifest_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"none\.tsv: cannot be read \(No such file"):
        read_manifest(tmp_path / "none.tsv")
    with pytest.raises(CorpusError, match="cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"speaker": "a\tb"}, {"id": "a\nb"}, {"part": ""}, {"path": Path("a\u2028.wav")}, {"speaker": "a\udce9"}],
)
def test_value_that_would_break_a_line_is_refused_and_nothing_is_written(changes, tmp_path):
    with pytest.raises(CorpusError, match="cannot stand in a manifest"):
        write_manifest(tmp_path / "m.tsv", [utterance(), utterance("b", **changes) if "id" not in changes
                                            else utterance(**changes)])  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_names_need_not_be_printable():
    assert all(map(can_stand_in_manifest, ("a", "ä ö", " ", "a\xa0b", "a\u200bb", "a\ue000b")))
    assert not any(map(can_stand_in_manifest, ("", "a\0", "a\tb", "a\x1cb", "a\x85", "\n", "a\ud800")))


def test_two_files_of_one_id_are_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"a\.wav and a\.flac would both have the id 'a'"):
        write_manifest(tmp_path / "m.tsv", [utterance(), utterance(path=Path("a.flac"))])


def test_check_finds_what_does_not_agree_with_the_files(tmp_path, speech):
    good = utterance("a", speech, num_samples=audio.info(speech).num_samples)
    write_manifest(tmp_path / "good.tsv", [good])
    assert check_manifest(tmp_path / "good.tsv") == ([good], [])
    wrong = [
        dataclasses.replace(good, num_samples=good.num_samples - 1),
        dataclasses.replace(good, id="b", sample_rate=16000),
        dataclasses.replace(good, id="c", path=tmp_path / "none.wav"),
    ]
    write_manifest(tmp_path / "wrong.tsv", wrong)
    utterances, complaints = check_manifest(tmp_path / "wrong.tsv")
    assert utterances == wrong
    assert [complaint.split(": ")[0].rsplit(":", 1)[1] for complaint in complaints] == ["2", "3", "4"]
    assert "the manifest says" in complaints[0]
    assert "cannot be opened" in complaints[2]


def test_check_does_not_believe_the_headers_of_mp3(tmp_path):
    """Of which some count the frame that says how many there are."""
    data = io.BytesIO()
    soundfile.write(data, np.zeros(48000), 24000, format="MP3")
    content = bytearray(data.getvalue())
    start = content.index(b"Xing") + 8
    content[start : start + 4] = (int.from_bytes(content[start : start + 4], "big") + 1).to_bytes(4, "big")
    content[start + 112 : start + 148] = bytes(36)  # how much silence the encoder put before and behind
    (tmp_path / "a.mp3").write_bytes(content)
    num_samples = audio.read(tmp_path / "a.mp3")[0].shape[1]
    assert audio.info(tmp_path / "a.mp3").num_samples != num_samples
    write_manifest(tmp_path / "m.tsv", [utterance("a", tmp_path / "a.mp3", num_samples=num_samples)])
    assert check_manifest(tmp_path / "m.tsv")[1] == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_check_does_not_wait_for_a_pipe(tmp_path):
    pipe = tmp_path / "a.wav"
    os.mkfifo(pipe)
    write_manifest(tmp_path / "m.tsv", [utterance("a", pipe)])
    assert check_manifest(tmp_path / "m.tsv")[1] == [f"{tmp_path / 'm.tsv'}:2: {pipe}: is no regular file"]


def test_names_that_macos_takes_apart_give_the_same_ids_and_speakers():
    for name in ("Zo\u00eb/M\u00fcller 1.wav", "Zoe\u0308/Mu\u0308ller 1.flac"):
        assert id_of(Path(name)) == "Zo\u00eb/M\u00fcller 1"
        assert speaker_of(Path(name)) == "Zo\u00eb"


@pytest.mark.parametrize("ids", [["b/x", "b//x"], ["b", "./b"], ["b", "b/"], ["Zo\u00eb", "Zoe\u0308"]])
def test_ids_that_are_one_path_cannot_name_two_files(ids):
    with pytest.raises(CorpusError, match=f"^list: ids '{ids[0]}' and '{ids[1]}' name the same file; rename one$"):
        require_file_names(ids, "list")


@pytest.mark.parametrize("id", ["/a", "../a", "a/../../b", ".", "", "a\0b"])
def test_id_that_is_no_path_below_a_folder_cannot_name_a_file(id):
    with pytest.raises(CorpusError, match="cannot name a file below a folder; ids are relative paths"):
        require_file_names(["good/a b", "a:b", id], "list")


@pytest.mark.parametrize("id", ["/a", "\\a", "C:a", "C:\\a", "a:b", "..\\a"])
def test_id_that_leaves_a_folder_on_windows_cannot_name_a_file_there(id, monkeypatch):
    monkeypatch.setattr("codec.manifest.PurePath", PureWindowsPath)
    with pytest.raises(CorpusError, match="cannot name a file below a folder; ids are relative paths"):
        require_file_names(["good/a b", id], "list")


def test_unknown_speakers_are_told_apart():
    assert is_unknown("libritts_unknown")
    assert not is_unknown(utterance().speaker)


def test_a_sound_file_is_no_manifest(tmp_path):
    with pytest.raises(CorpusError, match=r"talk\.wav: is named as a sound file, a manifest or a folder is meant"):
        read_manifest(tmp_path / "talk.wav")
