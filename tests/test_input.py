"""What any program wrote as JSON is read, or refused as one kind of error."""

import pytest

from codec.input import parse_json, read_json


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
