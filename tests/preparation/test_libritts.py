"""LibriTTS from nothing, from archives and from a tree: what is damaged is named, and the lists can be trusted."""

import dataclasses
import hashlib
import json
import shutil
import urllib.request
from pathlib import Path

import pytest
import soundfile
from small_corpus import RATE, SPEAKERS, make_archive, make_part, member, noise, plant_damage, rows
from test_archives import pack

from codec.cli import run
from codec.errors import ConfigError, CorpusError
from codec.manifest import check_manifest, read_manifest
from codec.preparation import libritts
from codec.preparation import survey as surveying
from codec.preparation.libritts import FILE_COUNTS, VARIANTS, Sources, prepare_libritts
from codec.preparation.outcome import PreparationConfig

ALONE = PreparationConfig(jobs=0)
ANY_SUM = Sources(check_sums=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A root with five parts, nothing wrong but that they are small."""
    root = tmp_path_factory.mktemp("whole")
    for part in SPEAKERS:
        make_part(root / "LibriTTS", part)
    (root / "LibriTTS" / "SPEAKERS.txt").write_text("; id | sex | subset | minutes | name\n")
    return root


@pytest.fixture
def root(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture(scope="module")
def packed(whole, tmp_path_factory) -> Path:
    """The same as archives."""
    folder = tmp_path_factory.mktemp("packed")
    for part in SPEAKERS:
        make_archive(folder / f"{part}.tar.gz", whole / "LibriTTS" / part, f"LibriTTS/{part}")
    return folder


@pytest.fixture(autouse=True)
def _no_network(request, monkeypatch):
    if "server" not in request.fixturenames:
        monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("touched the network"))


def tables(folder: Path) -> dict[str, bytes]:
    """Everything that is promised to be the same for the same corpus."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


# -- lists


def test_every_part_and_split_is_listed(root):
    outcome = prepare_libritts(root, config=ALONE)
    assert outcome.problems == []
    manifests = root / "manifests"
    names = {"train-clean-100": 6, "train-clean-360": 3, "train": 9, "dev-clean": 3, "dev": 3, "test-clean": 6,
             "test-other": 3}  # fmt: skip
    assert {path.stem: len(read_manifest(path)) for path in manifests.glob("*.tsv") if path.stem != "rejected"} == names
    first = read_manifest(manifests / "train.tsv")[0]
    assert (first.id, first.speaker, first.part) == ("1034_100_000000_000000", "1034", "train-clean-100")
    assert first.num_samples == round(0.6 * RATE)
    assert check_manifest(manifests / "train.tsv")[1] == []
    summary = json.loads((manifests / "prepare.json").read_text())
    assert summary["parts"]["test-clean"] == {
        "files": 6, "published": 4837, "utterances": 6, "hours": 0.0012, "speakers": 2, "rejected": {},
    }  # fmt: skip


def test_root_may_be_the_corpus_itself(root):
    outcome = prepare_libritts(root / "LibriTTS", config=ALONE)
    assert len(outcome.parts) == 5
    assert (root / "LibriTTS" / "manifests" / "train.tsv").exists()


def test_same_corpus_gives_the_same_bytes(root, packed, tmp_path):
    prepare_libritts(root, config=ALONE)
    expected = tables(root / "manifests")
    prepare_libritts(root, config=ALONE)
    assert tables(root / "manifests") == expected
    shutil.rmtree(root / "manifests")
    prepare_libritts(root, config=PreparationConfig(jobs=2))
    assert tables(root / "manifests") == expected
    prepare_libritts(tmp_path / "unpacked", sources=Sources(packed, check_sums=False), config=ALONE)
    assert tables(tmp_path / "unpacked" / "manifests") == expected


def test_second_run_measures_nothing(root, monkeypatch):
    prepare_libritts(root, config=ALONE)
    monkeypatch.setattr(surveying, "measure", lambda *_: pytest.fail("measured again"))
    prepare_libritts(root, config=ALONE)


def test_chosen_parts_only(root):
    outcome = prepare_libritts(root, parts=["test-clean", "dev-clean"], config=ALONE)
    assert list(outcome.manifests) == ["dev-clean.tsv", "test-clean.tsv", "dev.tsv"]


def test_lists_of_other_parts_stay(root):
    prepare_libritts(root, config=ALONE)
    before = tables(root / "manifests")
    prepare_libritts(root, parts=["test-clean"], config=ALONE)
    after = tables(root / "manifests")
    names = ("dev-clean.tsv", "dev.tsv", "train-clean-100.tsv", "train-clean-360.tsv", "train.tsv")
    assert {name: after.get(name) for name in names} == {name: before[name] for name in names}


def test_subset_takes_as_many_of_every_list(root):
    outcome = prepare_libritts(root, config=dataclasses.replace(ALONE, subset=2))
    assert {len(utterances) for utterances in outcome.manifests.values()} == {2}
    assert {utterance.speaker for utterance in outcome.manifests["test-clean.tsv"]} == {"1089", "121"}


# -- damage


def test_all_damage_is_named_with_its_reason(root):
    planted = plant_damage(root / "LibriTTS" / "train-clean-100" / "103" / "100")
    outcome = prepare_libritts(root, config=ALONE)
    rejected = {Path(path).name: reason for _, path, reason, _ in rows(root / "manifests" / "rejected.tsv")}
    assert rejected == planted
    assert len(outcome.manifests["train-clean-100.tsv"]) == 6
    assert outcome.problems == [
        "train-clean-100: 9 of 19 files cannot be used (1 channels, 1 misplaced, 1 missing, 1 no sound, 1 rate, "
        "4 unreadable), which is more than 0.1 %; the lists are written without them, accept that with "
        "--max-damaged 0.474"
    ]
    assert outcome.summary["parts"]["train-clean-100"]["files"] == 18
    details = {Path(path).name: detail for _, path, _, detail in rows(root / "manifests" / "rejected.tsv")}
    assert details["103_100_900003_000000.wav"] == "has a sample rate of 16000 Hz, the corpus has 24000 Hz"
    assert details["103_100_900008_000000.wav"].startswith("the file is cut off, its header promises 14400 samples")
    assert "is NaN" in details["103_100_900011_000000.wav"]


def test_damage_below_the_limit_is_a_warning(root):
    plant_damage(root / "LibriTTS" / "train-clean-100" / "103" / "100")
    outcome = prepare_libritts(root, config=dataclasses.replace(ALONE, max_damaged=0.474))
    assert outcome.problems == []
    assert any(sentence.startswith("train-clean-100: 9 of 19 files") for sentence in outcome.warnings)


def test_headers_alone_find_what_headers_can(root):
    planted = plant_damage(root / "LibriTTS" / "train-clean-100" / "103" / "100")
    prepare_libritts(root, config=dataclasses.replace(ALONE, headers_only=True))
    rejected = {Path(path).name: reason for _, path, reason, _ in rows(root / "manifests" / "rejected.tsv")}
    unseen = {number: f"103_100_9{number:05d}_000000.wav" for number in (5, 6, 7, 11)}
    assert rejected == {name: reason for name, reason in planted.items() if name not in unseen.values()}


def test_dev_and_test_are_not_thinned_unless_told(root):
    chapter = root / "LibriTTS" / "test-clean" / "121" / "100"
    soundfile.write(chapter / "121_100_000009_000000.wav", noise(0.2), RATE)
    outcome = prepare_libritts(root, parts=["test-clean"], config=ALONE)
    assert len(outcome.manifests["test-clean.tsv"]) == 7
    assert any("121_100_000009_000000 is kept" in sentence and "0.200 s" in sentence for sentence in outcome.warnings)
    outcome = prepare_libritts(root, parts=["test-clean"], filter_all=True, config=ALONE)
    assert [rejection.reason for rejection in outcome.rejections] == ["short"]


@pytest.mark.parametrize("other", ["121_100.trans.tsv", "121_100_000001_000000.normalized.txt"])
def test_missing_file_of_a_transcript_is_named(root, other):
    """Whichever of the two kinds of transcripts there is besides the other."""
    path = root / "LibriTTS" / "test-clean" / "121" / "100" / "121_100_000001_000000.wav"
    path.unlink()
    path.with_name(other).unlink()
    outcome = prepare_libritts(root, parts=["test"], config=ALONE)
    assert [rejection.path for rejection in outcome.rejections] == [path]
    assert outcome.problems == [
        "test-clean: 1 of 6 files cannot be used (1 missing), which is more than 0.1 %; the lists are written without "
        "them, accept that with --max-damaged 0.167"
    ]


def test_counts_are_compared_with_the_published_ones(root, monkeypatch):
    warnings = prepare_libritts(root, parts=["test-clean"], config=ALONE).warnings
    assert warnings == ["test-clean: has 6 sound files, 4831 fewer than the published 4837"]
    assert prepare_libritts(root, parts=["test-clean"], config=dataclasses.replace(ALONE, strict=True)).problems
    for counts in ((6,), (9, 6)):
        monkeypatch.setitem(FILE_COUNTS, "test-clean", counts)
        assert prepare_libritts(root, parts=["test-clean"], config=ALONE).warnings == []


def test_speaker_in_train_and_test_is_refused_and_nothing_is_written(root):
    corpus = root / "LibriTTS"
    shutil.copytree(corpus / "test-clean" / "121", corpus / "train-clean-360" / "121")
    with pytest.raises(CorpusError, match=r"train and test have 1 speaker in common, 121; a result"):
        prepare_libritts(root, config=ALONE)
    assert not list((root / "manifests").glob("*.tsv"))


def test_utterance_twice_in_one_part_is_rejected_once(root):
    part = root / "LibriTTS" / "test-clean"
    soundfile.write(part / "121" / "100" / "121_100_000001_000000.flac", noise(), RATE)
    outcome = prepare_libritts(root, parts=["test-clean"], config=ALONE)
    assert [rejection.reason for rejection in outcome.rejections] == ["duplicate"]


def test_listed_files_are_left_out(root, tmp_path):
    (tmp_path / "list.txt").write_text("./train-clean-100/103/100/103_100_000001_000000.wav\n103_100_000002_000000\n\n")
    outcome = prepare_libritts(root, parts=["train-clean-100"], exclude=[tmp_path / "list.txt"], config=ALONE)
    assert [rejection.reason for rejection in outcome.rejections] == ["excluded", "excluded"]
    with pytest.raises(CorpusError, match=r"none\.txt: is no list of files to leave out"):
        prepare_libritts(root, exclude=[tmp_path / "none.txt"], config=ALONE)


def test_listed_file_that_is_misplaced_counts_once(root, tmp_path):
    speaker = root / "LibriTTS" / "train-clean-100" / "103"
    name = "103_100_000001_000000.wav"
    (speaker / "100" / name).rename(speaker / name)
    (tmp_path / "list.txt").write_text(name)
    outcome = prepare_libritts(root, parts=["train-clean-100"], exclude=[tmp_path / "list.txt"], config=ALONE)
    assert [rejection.reason for rejection in outcome.rejections] == ["excluded"]
    assert outcome.parts[0].num_files == 6


def test_empty_part_is_a_problem(root):
    shutil.rmtree(root / "LibriTTS" / "dev-clean" / "84")
    (root / "LibriTTS" / "dev-clean" / "note.txt").write_text("nothing here")
    outcome = prepare_libritts(root, config=ALONE)
    assert outcome.problems == ["dev-clean: no utterance is left, so it has no manifest"]


# -- archives and the network


def test_nothing_there_says_what_to_do(tmp_path):
    with pytest.raises(CorpusError, match=r"holds no LibriTTS/test-clean .* with --archives, .* --no-download"):
        prepare_libritts(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"empty no test-clean\.tar\.gz .* without --archives"):
        prepare_libritts(tmp_path, sources=Sources(tmp_path / "empty", download=True))
    with pytest.raises(CorpusError, match=r"put https://www\.openslr\.org/resources/60/dev-other\.tar\.gz there, or"):
        prepare_libritts(tmp_path, parts=["dev-other"])
    with pytest.raises(CorpusError, match=r"resources/141/dev_other\.tar\.gz there"):
        prepare_libritts(tmp_path, parts=["dev-other"], variant="libritts-r")
    with pytest.raises(ConfigError, match="no such part: 'test-klean', 'foo'; there are train-clean-100"):
        prepare_libritts(tmp_path, parts=["test-klean", "dev", "foo"])
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


@pytest.mark.parametrize("parts", [[], ["dev-other"]])
def test_a_folder_of_archives_that_does_not_exist_is_refused(parts, root):
    """Nothing is fetched, and nothing made, for what may be a slip of the pen."""
    before = sorted(root.parent.iterdir())
    with pytest.raises(CorpusError, match="nonexist: no such folder; name the folder of the archives with --archives"):
        prepare_libritts(root, parts=parts, sources=Sources(root.parent / "nonexist", download=True))
    (root.parent / "file").touch()
    with pytest.raises(CorpusError, match="file: is a file, a folder is meant; name the folder"):
        prepare_libritts(root, parts=parts, sources=Sources(root.parent / "file", download=True))
    assert sorted(root.parent.iterdir()) == sorted([*before, root.parent / "file"])


def test_a_file_in_the_place_of_the_corpus_is_refused(tmp_path):
    (tmp_path / "corpus").write_text("mine")
    with pytest.raises(CorpusError, match="corpus: is a file, the folder of the corpus is meant"):
        prepare_libritts(tmp_path / "corpus", sources=Sources(download=True))
    assert (tmp_path / "corpus").read_text() == "mine"


def test_archive_with_another_sum_is_refused(packed, tmp_path):
    with pytest.raises(
        CorpusError, match=r"dev-clean\.tar\.gz: has the MD5 sum [0-9a-f]{32}, the published one is 0c30"
    ):
        prepare_libritts(tmp_path, parts=["dev-clean"], sources=Sources(packed), config=ALONE)
    assert list(tmp_path.iterdir()) == []


def test_archives_with_another_sum_are_all_named_and_none_is_unpacked(packed, tmp_path, monkeypatch):
    shutil.copytree(packed, tmp_path / "archives")
    published(monkeypatch, packed)
    wrong = ["train-clean-360.tar.gz", "test-clean.tar.gz"]
    for name in wrong:
        (tmp_path / "archives" / name).write_bytes(b"other")
    with pytest.raises(CorpusError, match=rf"{wrong[0]}: has .*{wrong[1]}: has .*; fetch them again, or allow"):
        prepare_libritts(tmp_path / "root", sources=Sources(tmp_path / "archives"), config=ALONE)
    assert not (tmp_path / "root").exists()


def test_archive_with_the_right_sum_is_unpacked_and_kept(packed, tmp_path, monkeypatch):
    published(monkeypatch, packed)
    prepare_libritts(tmp_path, parts=["dev-clean"], sources=Sources(packed), config=ALONE)
    assert (tmp_path / "LibriTTS" / "dev-clean" / "84").is_dir()
    assert (packed / "dev-clean.tar.gz").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LibriTTS", "manifests"]


@pytest.mark.parametrize("prefix", ["LibriTTS/dev-clean", "./LibriTTS/dev-clean", "dev-clean"])
def test_archive_may_be_packed_one_level_deeper_or_not(prefix, whole, tmp_path):
    make_archive(tmp_path / "dev-clean.tar.gz", whole / "LibriTTS" / "dev-clean", prefix)
    prepare_libritts(tmp_path, sources=ANY_SUM, config=ALONE)
    assert len(read_manifest(tmp_path / "manifests" / "dev.tsv")) == 3


def test_a_part_is_added_to_a_corpus_that_was_renamed(root, packed, tmp_path, monkeypatch):
    shutil.move(root / "LibriTTS" / "test-clean", tmp_path / "mine" / "test-clean")
    monkeypatch.chdir(tmp_path / "mine")
    sources = Sources(packed, check_sums=False)
    outcome = prepare_libritts(Path(), parts=["test-clean", "dev-clean"], sources=sources, config=ALONE)
    assert sorted(outcome.manifests) == ["dev-clean.tsv", "dev.tsv", "test-clean.tsv"]
    assert sorted(path.name for path in Path().iterdir()) == ["dev-clean", "manifests", "test-clean"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("LibriTTS/../../evil.wav"), "would be unpacked outside"),
        (member("LibriTTS/other/1.wav"), r"holds no LibriTTS/dev-clean, but LibriTTS"),
    ],
)
def test_bad_archive_leaves_nothing(bad, message, tmp_path):
    pack(tmp_path / "dev-clean.tar.gz", bad)
    with pytest.raises(CorpusError, match=message):
        prepare_libritts(tmp_path, sources=ANY_SUM, config=ALONE)
    assert [path.name for path in tmp_path.iterdir()] == ["dev-clean.tar.gz"]


def test_rest_of_a_killed_run_is_cleared_away(packed, tmp_path):
    (tmp_path / ".unpacking-dev-clean" / "LibriTTS" / "dev-clean").mkdir(parents=True)
    (tmp_path / ".unpacking-dev-clean" / "LibriTTS" / "dev-clean" / "half.wav").write_bytes(b"RIFF")
    prepare_libritts(tmp_path, parts=["dev-clean"], sources=Sources(packed, check_sums=False), config=ALONE)
    assert not (tmp_path / ".unpacking-dev-clean").exists()
    assert len(read_manifest(tmp_path / "manifests" / "dev-clean.tsv")) == 3


def test_too_little_space_is_said_before_the_first_byte(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CorpusError, match=r"bringing test-clean, test-other takes about 4\.1 GB and 1\.0 GB are free"):
        prepare_libritts(tmp_path / "corpora" / "new", parts=["test"], sources=Sources(download=True))
    assert not list(tmp_path.iterdir())


def test_without_anything_all_parts_are_fetched(whole, packed, tmp_path, monkeypatch, server):
    published(monkeypatch, packed)
    arguments = ["prepare", "libritts", str(tmp_path), "--jobs", "0", "--mirror", server.url("missing")]
    assert run([*arguments, "--no-download"]) == 2
    assert not server.requests
    assert run(arguments) == 2  # what the server lacks is asked for
    first = next(part for part in libritts.PARTS if part in SPEAKERS)
    assert {request[0] for request in server.requests} == {f"/missing/resources/60/{first}.tar.gz"}
    shutil.copytree(whole / "LibriTTS" / "dev-clean", tmp_path / "LibriTTS" / "dev-clean")
    server.requests.clear()
    assert run(arguments) == 0  # a corpus that has some parts has those that are wanted
    assert not server.requests


def test_all_archives_that_are_missing_are_named_at_once(root, tmp_path):
    shutil.rmtree(root / "LibriTTS" / "dev-clean")
    shutil.rmtree(root / "LibriTTS" / "test-clean")
    message = r"LibriTTS: has no dev-clean, test-clean, .*/60/dev-clean\.tar\.gz and .*/60/test-clean\.tar\.gz there"
    with pytest.raises(CorpusError, match=message):
        prepare_libritts(root, parts=["dev-clean", "test-clean"], sources=Sources(download=False), config=ALONE)


def test_all_parts_are_those_that_are_not_there_too(root, capsys):
    assert run(["prepare", "libritts", str(root), "--parts", "all", "--no-download"]) == 2
    assert "LibriTTS: has no train-other-500, dev-other, and" in capsys.readouterr().err


def published(monkeypatch, folder: Path) -> None:
    """Let the archives of a folder be the published ones."""
    archives = {
        part: dataclasses.replace(
            VARIANTS["libritts"].archives[part],
            md5=hashlib.md5((folder / f"{part}.tar.gz").read_bytes(), usedforsecurity=False).hexdigest(),
            num_bytes=(folder / f"{part}.tar.gz").stat().st_size,
        )
        for part in SPEAKERS
    }
    monkeypatch.setitem(VARIANTS, "libritts", dataclasses.replace(VARIANTS["libritts"], archives=archives))
    monkeypatch.setattr(libritts, "PARTS", tuple(part for part in libritts.PARTS if part in archives))


def test_from_nothing_over_a_network_that_fails(whole, packed, tmp_path, monkeypatch, server):
    published(monkeypatch, packed)
    server.data = (packed / "dev-clean.tar.gz").read_bytes()
    server.cut_after = len(server.data) // 2
    arguments = ["prepare", "libritts", str(tmp_path / "new"), "--parts", "dev-clean", "--jobs", "0"]
    mirrors = [part for manner in ("missing", "wrong", "cut") for part in ("--mirror", server.url(manner))]
    assert run([*arguments, *mirrors]) == 0
    assert server.requests[0][0] == "/missing/resources/60/dev-clean.tar.gz"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["LibriTTS", "manifests"]
    prepare_libritts(whole, tmp_path / "expected", parts=["dev-clean"], config=ALONE)
    found = read_manifest(tmp_path / "new" / "manifests" / "dev.tsv")
    expected = read_manifest(tmp_path / "expected" / "dev.tsv")
    assert [dataclasses.replace(u, path=u.path.name) for u in found] == [
        dataclasses.replace(u, path=u.path.name) for u in expected
    ]
    server.close()
    assert run([*arguments, *mirrors]) == 0  # nothing is fetched again


def test_published_facts_cover_every_part():
    for variant in VARIANTS.values():
        assert set(variant.archives) == set(libritts.PARTS) == set(FILE_COUNTS)
        assert all(len(bytes.fromhex(archive.md5)) == 16 for archive in variant.archives.values())
    assert sum(archive.num_bytes or 0 for archive in VARIANTS["libritts"].archives.values()) == 84_204_238_754
    assert VARIANTS["libritts-r"].archives["train-clean-100"].name == "train_clean_100.tar.gz"


def test_libritts_r_leaves_out_what_its_lists_name(whole, tmp_path):
    shutil.copytree(whole / "LibriTTS" / "train-clean-360", tmp_path / "LibriTTS_R" / "train-clean-360")
    bad = "./train-clean-360/14/100/14_100_000002_000000.wav\n"
    (tmp_path / "LibriTTS_R" / "train-clean-360_bad_sample_list.txt").write_text(bad)
    outcome = prepare_libritts(tmp_path, variant="libritts-r", config=ALONE)
    assert [(r.path.name, r.reason) for r in outcome.rejections] == [("14_100_000002_000000.wav", "excluded")]
    assert outcome.summary["corpus"] == "libritts-r"


# -- command line


def test_command_reports_and_fails_on_damage(root, capsys):
    plant_damage(root / "LibriTTS" / "train-clean-100" / "103" / "100")
    assert run(["prepare", "libritts", str(root), "--jobs", "0"]) == 2
    out, err = capsys.readouterr()
    assert "4 unreadable" in out
    assert "103_100_800000_000000.wav: is not there, 103_100.trans.tsv has its text" in out
    assert f"all 14 files left out: {root / 'manifests' / 'rejected.tsv'}" in out
    assert "codec: warning: test-clean: has 6 sound files, 4831 fewer than the published 4837" in err
    assert "codec: warning: not there and so left out: train-other-500, dev-other" in err
    assert err.splitlines()[-1].startswith("codec: train-clean-100: 9 of 19 files cannot be used")
    assert (root / "manifests" / "train.tsv").exists()


def test_command_reports_as_json(root, capsys):
    assert run(["prepare", "libritts", str(root), "--jobs", "0", "--json", "--quiet", "--parts", "train"]) == 2
    assert capsys.readouterr().err.startswith("codec:")
    assert run(["prepare", "libritts", str(root), "--jobs", "0", "--json", "--quiet", "--parts", "test-clean"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["parts"]["test-clean"]["utterances"] == 6
    assert err == "codec: warning: test-clean: has 6 sound files, 4831 fewer than the published 4837\n"


def test_check_compares_a_manifest_with_its_files(root, capsys):
    prepare_libritts(root, config=ALONE)
    manifest = root / "manifests" / "dev.tsv"
    assert run(["prepare", "check", str(manifest)]) == 0
    assert "3 utterances, 0.00 hours, all there" in capsys.readouterr().out
    (root / "LibriTTS" / "dev-clean" / "84" / "100" / "84_100_000001_000000.wav").unlink()
    assert run(["prepare", "check", str(manifest)]) == 2
    assert "dev.tsv:3: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-seconds", "5", "--max-seconds", "2"], "min_seconds must be at least 0 and below max_seconds"),
        (["--subset", "-1"], "subset must be a number of utterances"),
        (["--jobs", "-1"], "-1 is not in the range x>=0"),
        (["--max-damaged", "2"], "2.0 is not in the range 0<=x<=1"),
        (["--variant", "libritts-x"], "libritts-x"),
        (["--archives", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_settings_are_one_sentence(arguments, message, tmp_path, capsys):
    assert run(["prepare", "libritts", str(tmp_path), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
