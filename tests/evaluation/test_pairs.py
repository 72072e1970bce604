"""Which files belong together, and which pairs cannot be scored."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from codec import audio
from codec.errors import AudioError, CodecError
from codec.evaluation.delay import delay_of
from codec.evaluation.evaluate import Options, evaluate_folders
from codec.evaluation.metric import Pair
from codec.evaluation.pairs import Item, Problem, Reference, choose_some, find_references, load_pair, pair_folders
from codec.manifest import Utterance, write_manifest

COMPOSED, DECOMPOSED = "Zo\u00eb", "Zoe\u0308"
"""One name, as most systems write it and as macOS may."""


def write(path: Path, wav: np.ndarray, rate: int = 24000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, wav, rate, overwrite=True)
    return path


@pytest.fixture
def wav() -> np.ndarray:
    return (0.1 * np.sin(np.arange(24000) / 10)).astype(np.float32)


# -- pairing


def test_files_of_one_relative_path_are_pairs_whatever_their_suffix(tmp_path, wav):
    write(tmp_path / "a" / "x" / "1.wav", wav)
    write(tmp_path / "b" / "x" / "1.flac", wav)
    items, problems = pair_folders(tmp_path / "a", tmp_path / "b")
    assert [item.id for item in items] == ["x/1"]
    assert problems == []


def test_files_of_one_name_are_pairs_where_no_path_agrees(tmp_path, wav):
    write(tmp_path / "a" / "speaker" / "1.wav", wav)
    write(tmp_path / "a" / "speaker" / "2.wav", wav)
    write(tmp_path / "b" / "1.wav", wav)
    items, problems = pair_folders(tmp_path / "a", tmp_path / "b")
    assert [item.id for item in items] == ["speaker/1"]
    assert [(problem.id, "no estimate" in problem.reason) for problem in problems] == [("speaker/2", True)]


def test_a_name_that_two_files_have_pairs_neither(tmp_path, wav):
    for name in ("a/x/1", "a/y/1", "a/x/2", "b/1", "b/2"):
        write(tmp_path / f"{name}.wav", wav)
    items, problems = pair_folders(tmp_path / "a", tmp_path / "b")
    assert [item.id for item in items] == ["x/2"]
    assert [problem.id for problem in problems] == ["x/1", "y/1", "1"]


def test_missing_and_surplus_files_are_listed(tmp_path, wav):
    for name in ("a/1", "a/2", "b/2", "b/3"):
        write(tmp_path / f"{name}.wav", wav)
    items, problems = pair_folders(tmp_path / "a", tmp_path / "b")
    assert [item.id for item in items] == ["2"]
    reasons = {problem.id: problem.reason for problem in problems}
    assert "has no estimate" in reasons["1"]
    assert "has no reference" in reasons["3"]


def test_two_files_of_one_name_are_listed(tmp_path, wav):
    write(tmp_path / "a" / "1.wav", wav)
    write(tmp_path / "a" / "1.flac", wav)
    write(tmp_path / "b" / "1.wav", wav)
    items, problems = pair_folders(tmp_path / "a", tmp_path / "b")
    assert len(items) == 1
    assert "would both have the id '1'; rename one" in problems[0].reason


def test_names_with_accents_are_pairs_in_either_of_their_forms(tmp_path, wav):
    for folder, name in (("a", COMPOSED), ("b", DECOMPOSED)):
        for sound in (f"{name}/1.wav", f"anna/{name}.wav"):
            write(tmp_path / folder / sound, wav)
    path = write(tmp_path / "c.wav", wav)
    write_manifest(tmp_path / "m.tsv", [Utterance(f"anna/{DECOMPOSED}", path, len(wav), 24000, "anna", "p")])
    items, problems = pair_folders(tmp_path / "a", tmp_path / "b")
    assert {item.id: item.speaker for item in items} == {f"{COMPOSED}/1": COMPOSED, f"anna/{COMPOSED}": "anna"}
    assert problems == []
    assert [item.id for item in pair_folders(tmp_path / "m.tsv", tmp_path / "a")[0]] == [f"anna/{COMPOSED}"]


def test_two_forms_of_one_name_are_two_files_of_one_name(tmp_path, wav):
    for name in (f"a/{COMPOSED}", f"a/{DECOMPOSED}", f"b/{COMPOSED}"):
        write(tmp_path / f"{name}.wav", wav)
    if len(list((tmp_path / "a").iterdir())) == 1:
        pytest.skip("this file system takes both for one")
    items, problems = pair_folders(tmp_path / "a", tmp_path / "b")
    assert len(items) == 1
    assert f"would both have the id '{COMPOSED}'; rename one" in problems[0].reason


def test_file_whose_name_is_no_text_is_listed_and_the_rest_is_scored(tmp_path, wav):
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(wav)).astype(np.float32)
    for folder, sound in (("a", wav), ("b", wav + noise)):
        path = write(tmp_path / folder / "1.wav", sound)
        try:
            shutil.copy(path, os.path.join(os.fsencode(path.parent), b"caf\xe9.wav"))
        except OSError:
            pytest.skip("this file system takes no names that are not UTF-8")
    options = Options(metrics=("mel",), jobs=0)
    result = evaluate_folders(tmp_path / "a", tmp_path / "b", output=tmp_path / "out", options=options)
    assert [row.id for row in result.rows] == ["1"]
    assert {problem.id for problem in result.problems} == {"caf\\udce9"}
    assert "rename it" in (tmp_path / "out" / "problems.tsv").read_text()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_in_a_manifest_is_named_and_not_waited_for(tmp_path, wav):
    os.mkfifo(tmp_path / "a.wav")
    paths = {"a": tmp_path / "a.wav", "b": write(tmp_path / "b.wav", wav)}
    write_manifest(tmp_path / "m.tsv", [Utterance(id, path, len(wav), 24000, "s", "p") for id, path in paths.items()])
    references, problems = find_references(tmp_path / "m.tsv")
    assert references == {"b": Reference(paths["b"], "s")}
    assert problems == [Problem("a", "", f"{paths['a']}: is no regular file")]


def test_no_pair_at_all_is_an_error(tmp_path, wav):
    write(tmp_path / "a" / "1.wav", wav)
    write(tmp_path / "b" / "2.wav", wav)
    with pytest.raises(AudioError, match="no file is named like"):
        pair_folders(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(("make", "reason"), [(None, "no such folder"), ("file", "is a file"), ("empty", "no sound")])
def test_useless_folder_is_an_error(tmp_path, wav, make, reason):
    write(tmp_path / "a" / "1.wav", wav)
    other = tmp_path / "b"
    if make == "file":
        other.write_text("x")
    if make == "empty":
        other.mkdir()
    with pytest.raises(AudioError, match=reason):
        pair_folders(tmp_path / "a", other)


def test_references_of_a_manifest(tmp_path, wav):
    path = write(tmp_path / "wav" / "1.wav", wav)
    manifest = tmp_path / "test.tsv"
    write_manifest(manifest, [Utterance("s/1", path, len(wav), 24000, "s", "test")])
    references, problems = find_references(manifest)
    assert {id: (it.path.resolve(), it.speaker) for id, it in references.items()} == {"s/1": (path.resolve(), "s")}
    assert problems == []


@pytest.mark.parametrize("id", ["../1", "/etc/1"])
def test_id_that_leaves_the_folder_is_an_error(tmp_path, wav, id):
    write_manifest(tmp_path / "m.tsv", [Utterance(id, write(tmp_path / "1.wav", wav), len(wav), 24000, "s", "test")])
    with pytest.raises(CodecError, match="relative paths"):
        find_references(tmp_path / "m.tsv")


def test_text_beside_a_reference_is_found(tmp_path, wav):
    write(tmp_path / "a" / "1.wav", wav)
    write(tmp_path / "b" / "1.wav", wav)
    (tmp_path / "a" / "1.normalized.txt").write_text("Hello there.\n")
    assert pair_folders(tmp_path / "a", tmp_path / "b")[0][0].text == "Hello there."


def test_subset_is_spread_evenly():
    ids = [str(number) for number in range(10)]
    assert choose_some(ids, 3) == ["0", "3", "6"]
    assert choose_some(ids, None) == ids
    assert choose_some(ids, 20) == ids


# -- loading


def item(tmp_path: Path, reference: np.ndarray, estimate: np.ndarray, rates: tuple[int, int] = (24000, 24000)) -> Item:
    files = [
        write(tmp_path / name / "1.wav", wav, rate)
        for name, wav, rate in zip(("a", "b"), (reference, estimate), rates, strict=True)
    ]
    return Item("1", *files)


@pytest.mark.parametrize("surplus", [0, 320, -320])
def test_lengths_within_the_tolerance_are_cut_to_the_shorter_and_told(tmp_path, wav, surplus):
    estimate = np.concatenate([wav, wav])[: len(wav) + surplus]
    pair, found = load_pair(item(tmp_path, wav, estimate), tolerance=320)
    assert found == surplus
    assert len(pair.reference) == len(wav) + min(surplus, 0)


@pytest.mark.parametrize(("surplus", "what"), [(321, "321 samples .* longer"), (-321, "321 samples .* shorter")])
def test_lengths_beyond_the_tolerance_are_refused(tmp_path, wav, surplus, what):
    estimate = np.concatenate([wav, wav])[: len(wav) + surplus]
    with pytest.raises(AudioError, match=what):
        load_pair(item(tmp_path, wav, estimate), tolerance=320)


@pytest.mark.parametrize(("rates", "allowed"), [((24000, 24000), 600), ((48000, 16000), 400)])
def test_tolerance_between_folders_is_a_frame_of_the_slowest_codec(tmp_path, wav, rates, allowed):
    reference, longest = np.resize(wav, rates[0]), rates[1] + allowed
    load_pair(item(tmp_path, reference, np.resize(wav, longest), rates))
    with pytest.raises(AudioError, match=f"{allowed} are allowed"):
        load_pair(item(tmp_path, reference, np.resize(wav, longest + 1), rates))


def test_reference_is_brought_to_the_rate_of_the_estimate(tmp_path, wav):
    estimate = audio.resample(wav, 24000, 16000)
    pair, _ = load_pair(item(tmp_path, wav, estimate, (24000, 16000)), tolerance=1)
    assert pair.sample_rate == 16000
    assert np.abs(pair.reference - pair.estimate)[100:-100].max() < 1e-3


@pytest.mark.parametrize("which", [0, 1])
def test_silence_is_refused_by_name(tmp_path, wav, which):
    both = [wav, wav]
    both[which] = np.zeros_like(wav)
    with pytest.raises(AudioError, match=rf"{'ab'[which]}.1\.wav: is digital silence"):
        load_pair(item(tmp_path, *both))
    both[which] = 0.0005 * wav
    with pytest.raises(AudioError, match=r"is silence, its largest sample is"):
        load_pair(item(tmp_path, *both))


def test_nan_is_refused_by_name(tmp_path, wav):
    import soundfile

    files = item(tmp_path, wav, wav)
    broken = wav.copy()
    broken[100] = np.nan
    soundfile.write(files.estimate, broken, 24000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"b.1\.wav: sample 100 .* is NaN"):
        load_pair(files)


def test_unreadable_file_is_refused_by_name(tmp_path, wav):
    files = item(tmp_path, wav, wav)
    files.estimate.write_bytes(b"no sound")
    with pytest.raises(AudioError, match="is not a sound file"):
        load_pair(files)


# -- delay


@pytest.mark.parametrize("delay", [0, 7, -5, 480, 1200, -1200])
def test_delay_is_found(reference, delay):
    noise = np.random.default_rng(0).standard_normal(len(reference)).astype(np.float32)
    late = np.roll(reference, delay) * 0.5 + 0.01 * noise
    assert delay_of(Pair(reference, late, 24000)) == delay


@pytest.mark.parametrize(("level", "told"), [(2, 480), (8, None)])
def test_delay_is_told_from_a_correlation_of_a_quarter_on(reference, level, told):
    """With noise of `level` times the amplitude the correlation is 1 / sqrt(1 + level^2): 0.45 and 0.12."""
    noise = np.random.default_rng(0).standard_normal(len(reference)) * reference.std()
    late = (np.roll(reference, 480) + level * noise).astype(np.float32)
    assert delay_of(Pair(reference, late, 24000)) == told


def test_delay_of_an_unrelated_waveform_is_not_told(reference):
    noise = np.random.default_rng(0).standard_normal(len(reference)).astype(np.float32)
    assert delay_of(Pair(reference, noise, 24000)) is None
    assert delay_of(Pair(reference + 1, noise + 9, 24000)) is None  # whose offsets agree
    assert delay_of(Pair(reference[:1], noise[:1], 24000)) is None


@pytest.mark.parametrize("grows", [True, False])
def test_delay_is_removed_whether_the_estimate_grew_by_it_or_not(tmp_path, reference, grows):
    wav = reference[:24000]
    late = np.concatenate([np.zeros(1000, np.float32), wav])[: len(wav) + 1000 * grows]
    files = item(tmp_path, wav, late)
    if grows:
        with pytest.raises(AudioError, match=r"1000 samples .* longer"):
            load_pair(files)
    pair, _ = load_pair(files, delay=1000)
    assert np.abs(pair.reference - pair.estimate).max() < 1e-4
    assert len(pair.reference) == len(wav) - 1000 * (not grows)


@pytest.mark.parametrize(
    ("delay", "what"), [(24000, "no samples left behind the delay of 24000"), (30000, r"24000 samples .* shorter")]
)
def test_delay_of_the_whole_file_or_more_is_refused(tmp_path, wav, delay, what):
    with pytest.raises(AudioError, match=what):
        load_pair(item(tmp_path, wav, wav), delay=delay)
