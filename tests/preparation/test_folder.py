"""Any folder of sound files becomes manifests that training and evaluation read."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_corpus import RATE, noise, rows

from codec import audio
from codec.cli import run
from codec.errors import AudioError, ConfigError, CorpusError
from codec.manifest import Utterance, read_manifest, write_manifest
from codec.preparation.folder import prepare_folder
from codec.preparation.outcome import PreparationConfig

ALONE = PreparationConfig(jobs=0)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two parts, five speakers, three formats, two rates, stereo, and things that are no sound."""
    for place in ("train/anna/1.wav", "train/anna/2.flac", "train/ben/b c/3.ogg", "train/cleo/4.wav", "dev/dan/5.wav",
                  "dev/ed/6.wav", "dev/ed/7.WAV"):  # fmt: skip
        path = tmp_path / "audio" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(), 16000 if "dan" in place else RATE)
    soundfile.write(tmp_path / "audio" / "train" / "anna" / "8.wav", np.stack([noise(2)] * 2, axis=1), 44100)
    (tmp_path / "audio" / "train" / "anna" / "notes.txt").write_text("no sound")
    (tmp_path / "audio" / "train" / "anna" / "._1.wav").write_bytes(b"\0\5\x16\7")
    (tmp_path / "audio" / ".hidden").mkdir()
    soundfile.write(tmp_path / "audio" / ".hidden" / "9.wav", noise(), RATE)
    return tmp_path / "audio"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_named(folder, tmp_path):
    (folder / "train" / "ben").chmod(0)
    try:
        with pytest.raises(AudioError, match=r"ben: the folder cannot be read \(Permission denied\)"):
            prepare_folder(folder, tmp_path / "lists", config=ALONE)
        with pytest.raises(AudioError, match=r"ben: the folder cannot be read \(Permission denied\)"):
            audio.find_sounds(folder)
    finally:
        (folder / "train" / "ben").chmod(0o700)


def speakers(path: Path) -> list[str]:
    return sorted({utterance.speaker for utterance in read_manifest(path)})


def test_first_folder_names_the_speaker(folder, tmp_path):
    prepare_folder(folder, tmp_path / "lists", config=ALONE)
    utterances = read_manifest(tmp_path / "lists" / "all.tsv")
    assert [(u.id, u.speaker) for u in utterances[:2]] == [("dev/dan/5", "dev"), ("dev/ed/6", "dev")]
    assert {u.sample_rate for u in utterances} == {16000, RATE, 44100}
    assert len(utterances) == 8
    assert rows(tmp_path / "lists" / "rejected.tsv") == [
        ["all", str(folder / "train/anna/._1.wav"), "stub", "is what macOS leaves beside a copied file, no sound"]
    ]


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("part/speaker", {"train.tsv": ["anna", "ben", "cleo"], "dev.tsv": ["dan", "ed"]}),
        ("part", {"train.tsv": ["unknown"], "dev.tsv": ["unknown"]}),
        ("*/speaker", {"all.tsv": ["anna", "ben", "cleo", "dan", "ed"]}),
        ("*/*/speaker", {"all.tsv": ["b c", "unknown"]}),
        ("", {"all.tsv": ["unknown"]}),
    ],
)
def test_layout_says_what_folders_mean(layout, expected, folder, tmp_path):
    outcome = prepare_folder(folder, tmp_path / "lists", layout=layout, config=ALONE)
    assert {name: speakers(tmp_path / "lists" / name) for name in outcome.manifests} == expected


def test_a_part_called_as_the_list_of_what_is_left_out_is_refused(folder, tmp_path):
    (folder / "dev").rename(folder / "rejected")
    with pytest.raises(CorpusError, match="no part can have the name rejected of what is left out; rename it"):
        prepare_folder(folder, tmp_path / "lists", layout="part/speaker", config=ALONE)
    assert not (tmp_path / "lists" / "rejected.tsv").exists()


def test_a_list_that_cannot_have_its_share_is_told(folder):
    assert prepare_folder(folder / "train", held_out={"dev": 0.1}, config=ALONE).warnings == []
    for number in range(20):
        shutil.copy(folder / "train" / "anna" / "1.wav", folder / "train" / "anna" / f"{number} more.wav")
        shutil.copy(folder / "train" / "anna" / "1.wav", folder / "train" / "cleo" / f"{number} more.wav")
    outcome = prepare_folder(folder / "train", held_out={"dev": 0.2}, config=ALONE)
    (warning,) = outcome.warnings
    assert warning.startswith("dev: has 1 of 45 utterances instead of 9, as known speakers are held out whole")


def test_held_out_speakers_are_in_one_list_only(folder, tmp_path):
    outcome = prepare_folder(folder, layout="*/speaker", held_out={"dev": 0.2, "test": 0.2}, config=ALONE)
    manifests = folder / "manifests"
    found = {name: speakers(manifests / f"{name}.tsv") for name in ("train", "dev", "test")}
    assert sorted(name for names in found.values() for name in names) == ["anna", "ben", "cleo", "dan", "ed"]
    assert {u.part for u in read_manifest(manifests / "dev.tsv")} == {"dev"}
    assert outcome.warnings == []
    again = prepare_folder(folder, layout="*/speaker", held_out={"dev": 0.2, "test": 0.2}, config=ALONE)
    assert again.summary == outcome.summary


def test_speakers_in_two_parts_are_a_warning(folder, tmp_path):
    shutil.copytree(folder / "train" / "anna", folder / "dev" / "anna")
    outcome = prepare_folder(folder, layout="part/speaker", config=ALONE)
    assert outcome.warnings == ["dev and train have 1 speaker in common, anna"]
    outcome = prepare_folder(folder, layout="part/speaker", config=dataclasses.replace(ALONE, strict=True))
    assert outcome.problems == ["dev and train have 1 speaker in common, anna"]


def test_a_folder_named_like_a_sound_file_is_rejected_unless_sound_is_in_it(folder, tmp_path):
    (folder / "train" / "anna" / "9.wav").mkdir()
    (folder / "train" / "ben").rename(folder / "train" / "ben.ogg")
    outcome = prepare_folder(folder, tmp_path / "lists", config=ALONE)
    assert len(outcome.manifests["all.tsv"]) == 8
    assert ["all", str(folder / "train/anna/9.wav"), "unreadable", "is no regular file"] in rows(
        tmp_path / "lists" / "rejected.tsv"
    )
    assert [rejection.reason for rejection in outcome.rejections] == ["unreadable", "stub"]


def test_links_are_followed_once(folder, tmp_path):
    (tmp_path / "linked").mkdir()
    os.symlink(folder, tmp_path / "linked" / "audio")
    os.symlink(tmp_path / "linked", tmp_path / "linked" / "back")
    outcome = prepare_folder(tmp_path / "linked", tmp_path / "lists", config=ALONE)
    assert len(outcome.manifests["all.tsv"]) == 8


def test_same_name_with_another_suffix_is_rejected(folder):
    soundfile.write(folder / "train" / "anna" / "1.flac", noise(), RATE)
    outcome = prepare_folder(folder, config=ALONE)
    assert [(r.path.name, r.reason) for r in outcome.rejections] == [("1.wav", "duplicate"), ("._1.wav", "stub")]


def test_damage_accepted_beside_earlier_files_does_not_fail_a_list_of_later_ones(folder, tmp_path):
    (folder / "train" / "ben" / "damaged.wav").write_bytes(b"no sound")
    config = dataclasses.replace(ALONE, max_damaged=0.12)
    assert prepare_folder(folder, tmp_path / "old", config=config).problems == []
    soundfile.write(folder / "train" / "ben" / "10.wav", noise(), RATE)
    later = prepare_folder(folder, tmp_path / "new", exclude=[tmp_path / "old" / "all.tsv"], config=config)
    assert [utterance.id for utterance in later.manifests["all.tsv"]] == ["train/ben/10"]
    assert (later.problems, later.warnings) == ([], ["all: 1 of 10 files cannot be used (1 unreadable)"])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("line", ["Zo\u00eb/1", "Zo\u00eb/1.wav", "{folder}/Zo\u00eb/1.wav", None])
def test_names_with_accents_are_left_out_in_either_of_their_forms(line, form, tmp_path):
    for name in ("Zoe\u0308/1.wav", "Zoe\u0308/2.wav"):
        path = tmp_path / "new" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(), RATE)
    listed = tmp_path / "some.txt"
    if line is None:
        write_manifest(listed, [Utterance(unicodedata.normalize(form, "Zo\u00eb/1"), path, 1, RATE, "s", "p")])
    else:
        listed.write_text(unicodedata.normalize(form, line.format(folder=tmp_path / "new")), encoding="utf-8")
    outcome = prepare_folder(tmp_path / "new", tmp_path / "lists", exclude=[listed], config=ALONE)
    (kept,) = outcome.manifests["all.tsv"]
    assert (kept.id, kept.speaker, kept.path) == ("Zo\u00eb/2", "Zo\u00eb", path)


def test_what_an_earlier_list_has_and_what_is_named_is_left_out(folder, tmp_path, capsys):
    prepare_folder(folder, tmp_path / "old", config=ALONE)
    for name in ("fay/10.wav", "fay/11.wav", "fay/12.wav", "fay/13.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, noise(), RATE)
    (tmp_path / "some.txt").write_text(f"fay/11\nfay/12.wav\n{folder / 'fay' / '13.wav'}\n")
    arguments = ["prepare", "folder", str(folder), "--out", str(tmp_path / "new"), "--jobs", "0"]
    lists = [str(tmp_path / "old" / "all.tsv"), str(tmp_path / "some.txt")]
    assert run([*arguments, "--exclude", lists[0], "--exclude", lists[1]]) == 0
    assert [utterance.id for utterance in read_manifest(tmp_path / "new" / "all.tsv")] == ["fay/10"]
    reasons = [reason for _, _, reason, _ in rows(tmp_path / "new" / "rejected.tsv")]
    assert (reasons.count("excluded"), reasons.count("stub"), len(reasons)) == (11, 1, 12)
    measured = (tmp_path / "new" / ".survey" / "all.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["path"] for line in measured] == ["fay/10.wav"]
    by_part = [
        "--layout",
        "part/speaker",
        "--out",
        str(tmp_path / "parts"),
        "--exclude",
        lists[0],
        "--min-seconds",
        "0",
    ]
    assert run([*arguments, *by_part, "--exclude", lists[1]]) == 0  # although nothing is new in one of the parts
    assert {path.name for path in (tmp_path / "parts").glob("*.tsv")} == {"fay.tsv", "rejected.tsv"}
    capsys.readouterr()
    (tmp_path / "some.txt").write_text("fay/10\nfay/11\nfay/12\nfay/13\n")
    everything = ["--out", str(tmp_path / "none"), "--exclude", lists[0], "--exclude", lists[1]]
    assert run([*arguments, *everything]) == 0
    assert "warning: nothing is new, so there is no list\n" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "none").glob("*.tsv")} == {"rejected.tsv"}
    (tmp_path / "some.txt").write_text("10.wav\n")
    assert run([*arguments, "--exclude", lists[1]]) == 0
    assert f"warning: {lists[1]}: names no file of {folder}" in capsys.readouterr().err
    assert run([*arguments, "--exclude", str(tmp_path / "none.txt")]) == 2
    assert "none.txt: is no list of files to leave out (No such file or directory)\n" in capsys.readouterr().err
    (tmp_path / "some.txt").write_bytes(b"\xff\n")
    assert run([*arguments, "--exclude", lists[1]]) == 2
    assert "some.txt: is no list of files to leave out, it is not UTF-8 text\n" in capsys.readouterr().err
    assert run([*arguments, "--exclude", str(tmp_path / "new" / "rejected.tsv")]) == 2
    assert "rejected.tsv:1: is not a manifest, its first line lacks the columns id" in capsys.readouterr().err


def test_duration_may_have_no_limit(folder, tmp_path):
    assert run(["prepare", "folder", str(folder), "--out", str(tmp_path / "new"), "--max-seconds", "inf"]) == 0
    assert json.loads((tmp_path / "new" / "prepare.json").read_text())["settings"]["max_seconds"] is None


def test_name_that_fits_no_table_is_rejected(folder):
    shutil.copy(folder / "train" / "anna" / "1.wav", folder / "train" / "anna" / "a\tb.wav")
    shutil.copy(folder / "train" / "anna" / "1.wav", os.fsencode(folder / "train" / "anna") + b"/\xff.wav")
    outcome = prepare_folder(folder, config=ALONE)
    assert sorted(r.reason for r in outcome.rejections) == ["name", "name", "stub"]
    assert len(rows(folder / "manifests" / "rejected.tsv")) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are UTF-8 in every locale")
def test_a_locale_in_which_names_are_no_text_is_told_of(tmp_path):
    (tmp_path / "sprächë日本").mkdir()
    soundfile.write(tmp_path / "sprächë日本" / "1.wav", noise(), RATE)
    command = [sys.executable, "-m", "codec", "prepare", "folder", tmp_path / "sprächë日本", "--jobs", "0"]
    plain = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    refused = subprocess.run(command, env=plain, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "bytes that are no text; rename it, or set PYTHONUTF8=1 if it is UTF-8" in refused.stdout
    assert subprocess.run(command, env=plain | {"PYTHONUTF8": "1"}).returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "speaker/speaker"}, "layout must name part and speaker at most once"),
        ({"layout": "reader"}, "layout must name part and speaker"),
        ({"layout": "part/speaker", "held_out": {"dev": 0.1}}, "has parts is divided already"),
        ({"held_out": {"dev": 1.5}}, "shares that are held out must lie between 0 and 1 .* got dev 1.5"),
        ({"held_out": {"dev": 0.5, "test": 0.5}}, "and leave something"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message, folder):
    with pytest.raises(ConfigError, match=message):
        prepare_folder(folder, config=ALONE, **options)
    assert not (folder / "manifests").exists()


def test_folder_without_sound_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"no sound files in it \(\.aif, "):
        prepare_folder(tmp_path)
    with pytest.raises(CorpusError, match="none: no such folder"):
        prepare_folder(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(CorpusError, match="file: is a file, a folder is meant"):
        prepare_folder(tmp_path / "file")


def test_a_list_that_is_empty_now_does_not_stay_from_before(folder, tmp_path):
    prepare_folder(folder, tmp_path / "lists", layout="part/speaker", config=ALONE)
    assert (tmp_path / "lists" / "dev.tsv").exists()
    for path in (folder / "dev").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    outcome = prepare_folder(folder, tmp_path / "lists", layout="part/speaker", config=ALONE)
    assert any("dev: no utterance is left" in problem for problem in outcome.problems)
    assert not (tmp_path / "lists" / "dev.tsv").exists()


def test_manifests_in_a_file_are_refused(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CorpusError, match="file: is a file; name a folder for the manifests"):
        prepare_folder(folder, tmp_path / "file")


def test_command_prepares_a_folder(folder, tmp_path, capsys):
    arguments = ["prepare", "folder", str(folder), "--layout", "part/speaker", "--out", str(tmp_path / "lists")]
    assert run([*arguments, "--jobs", "0", "--min-seconds", "0.4"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["part", "files", "published", "kept", "hours", "speakers", "left", "out"]
    assert out[1].split() == ["dev", "3", "-", "3", "0.00", "2", "-"]
    assert json.loads((tmp_path / "lists" / "prepare.json").read_text())["settings"]["min_seconds"] == 0.4
    assert run([*arguments, "--jobs", "0", "--min-seconds", "1"]) == 2
    assert "dev: no utterance is left" in capsys.readouterr().err


def test_training_reads_a_manifest_as_it_reads_a_folder(folder, tmp_path):
    from codec.training.cache import open_cache

    shutil.rmtree(folder / ".hidden")
    (folder / "train" / "anna" / "._1.wav").unlink()
    prepare_folder(folder, tmp_path / "lists", layout="*/speaker", config=ALONE)
    listed = open_cache([tmp_path / "lists" / "all.tsv"], tmp_path / "a", 24000)
    found = open_cache([folder], tmp_path / "b", 24000)
    assert sorted(Path(path).with_suffix("").as_posix() for path in found.paths) == sorted(listed.paths)
    assert listed.seconds == found.seconds
    assert sorted(set(listed.speakers)) == ["anna", "ben", "cleo", "dan", "ed"]
