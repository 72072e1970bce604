"""Work under way: seen on a terminal and gone at the end, told now and then in a log."""

import contextlib
import os
import re
import struct
import sys

import pytest

from codec import progress
from codec.progress import CountLine, SpeedLine, duration


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LOGGED", 0.0)


def count(line: CountLine) -> None:
    with line:
        for done in (700, 800, 850):  # 700 were there before
            line("encoded", done, 1000)


def test_a_log_gets_plain_lines(impatient, capsys):
    count(CountLine())
    with SpeedLine("long.wav") as line:
        line(30.0, 120.0)
        line(30.0, None)
    first, second, third, known, unknown = capsys.readouterr().err.splitlines()
    assert first == "encoded: 700 of 1000 (70%)"  # no speed as yet
    assert re.fullmatch(r"encoded: 800 of 1000 \(80%\), \S+ per second, \d+ s left", second)
    assert re.fullmatch(r"encoded: 850 of 1000 \(85%\), \S+ per second, \d+ s left", third)
    assert re.fullmatch(r"long.wav \[##### {15}\]  25%  \S+ x real time, \d+ s left", known)
    assert re.fullmatch(r"long.wav  30 s done, \S+ x real time", unknown)


def test_short_work_leaves_no_trace_in_a_log(capsys):
    count(CountLine())
    assert capsys.readouterr() == ("", "")


def test_nothing_is_told_where_it_is_not_wanted(impatient, capsys):
    count(CountLine(False))
    assert capsys.readouterr() == ("", "")


def test_every_step_has_its_own_speed(impatient, capsys):
    with CountLine() as line:
        for step in ("read", "checked"):
            line(step, 5, 10)
    assert capsys.readouterr().err == "read: 5 of 10 (50%)\nchecked: 5 of 10 (50%)\n"


@contextlib.contextmanager
def terminal(monkeypatch, columns: int):
    """Standard error on a terminal of some width; gives what reads from it up to an end."""
    pty, termios, fcntl = (pytest.importorskip(name) for name in ("pty", "termios", "fcntl"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read(end: str) -> str:
        shown = ""
        while not shown.endswith(end):
            shown += os.read(ours, 10000).decode()
        return shown

    with open(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        yield read
    os.close(ours)


def test_the_line_on_a_terminal_is_written_over_and_removed(impatient, monkeypatch):
    with terminal(monkeypatch, 80) as read:
        count(CountLine())
        shown = read(" left\r\x1b[K")
    assert shown.startswith("\r\x1b[Kencoded: 700 of 1000 (70%)\r\x1b[Kencoded: 800 of 1000 (80%), ")
    assert "\n" not in shown


def test_a_log_that_nobody_reads_does_not_end_the_work(impatient, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    log = open(writer, "w")
    monkeypatch.setattr(sys, "stderr", log)
    count(CountLine())
    with contextlib.suppress(OSError):
        log.close()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (1e6, "12 d")]
)
def test_durations_have_a_unit_that_says_enough(seconds, text):
    assert duration(seconds) == text


def test_a_line_is_cut_to_the_terminal_where_it_tells_least(impatient, monkeypatch):
    with terminal(monkeypatch, 100) as read:
        with SpeedLine("[1/9] " + "corpus/" * 20 + "1089_0002.flac") as line:
            line(30.0, 120.0)
        shown = read(" left\r\x1b[K").split("\r\x1b[K")[1]
    assert len(shown) == 99
    assert re.fullmatch(r"….*1089_0002.flac \[##### {15}\]  25%  \S+ x real time, \d+ s left", shown)
