"""Tables for people and for programs."""

import os

from codec.tables import aligned, write_table


def test_words_begin_together_and_numbers_end_together():
    rows = [("part", "hours", "left out"), ("dev-clean", "8.97", "-"), ("x", "100.00", "1 silent")]
    assert aligned(rows, words=("part", "left out")) == [
        "part        hours  left out",
        "dev-clean    8.97  -",
        "x          100.00  1 silent",
    ]


def test_every_cell_stays_in_its_place(tmp_path):
    odd = os.fsdecode(b"a  b\xff")
    write_table(tmp_path / "a.tsv", ("path", "reason"), [(odd, "1\t2\r\n3"), ("", 4)])
    assert (tmp_path / "a.tsv").read_bytes() == b"path\treason\na  b\\udcff\t1 2  3\n\t4\n"
