"""What any program wrote as JSON is read, or refused as one kind of error."""

from typing import Any, Literal

import pytest

from codec.input import is_of, parse_json, read_json


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":['])
def test_lists_within_each_other_without_end_are_refused_like_other_damage(tmp_path, opening):
    text = opening * 200_000
    for data in (text, text.encode()):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(data)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": 1}}', b"\xff\xfe\xfd", b'"\xff"', b"9" * 5000])
def test_what_is_no_json_is_a_value_error(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "a.json")


def test_names_in_utf8_are_read_whatever_the_system_prefers(tmp_path):
    (tmp_path / "a.json").write_bytes('{"Zoë": ["日本"]}'.encode())
    assert read_json(tmp_path / "a.json") == {"Zoë": ["日本"]}


@pytest.mark.parametrize(
    ("kind", "fitting", "others"),
    [
        (int, [0, -3], [True, 1.0, "1", None]),
        (float, [0.5, 3], [True, "0.5", None, float("nan"), float("-inf")]),
        (bool, [True], [1, None]),
        (str | None, ["", None], [0, ["a"]]),
        (list[int], [[], [2, 3]], [[2, "a"], [True], 2, {"a": 2}]),
        (Any, [None, 1, ["a"]], []),
        (Literal["a", 3], ["a", 3], ["b", 4, None]),
        (tuple[int, ...], [[1, 2], (1, 2)], [3, "a"]),
        (dict[str, dict[str, float]], [{}, {"a": {"b": 1.5}}], [{"a": 1.5}, {"a": {"b": "c"}}, []]),
    ],
    ids=str,
)
def test_values_are_of_the_type_that_is_stated(kind: Any, fitting: list[Any], others: list[Any]):
    assert all(is_of(value, kind) for value in fitting)
    assert not any(is_of(value, kind) for value in others)
