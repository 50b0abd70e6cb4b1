"""The strict YAML reader: what it reads, what it writes back, and how quickly and clearly it
refuses the rest.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from fedgraft.common.errors import UserError, UserErrors
from fedgraft.common.files.yaml_file import LARGEST_FILE, dump_yaml, parse_yaml, read_yaml, validate
from fedgraft.common.plan.section import Section

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(), values, max_size=4))
def test_what_is_written_is_read_back(data: dict) -> None:
    """A word such as `1e-3`, `no` or `.inf` that came back as something else would change a plan's
    meaning.
    """
    assert parse_yaml(dump_yaml(data), "x")[0] == data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),  # a text in YAML 1.1
        ("1.0e-3", 1e-3),
        ("-7", -7),
        (".5", 0.5),
        ("no", "no"),  # false in YAML 1.1
        ("true", True),
        ("12:30", "12:30"),  # 750 in YAML 1.1
        ("2024-01-01", "2024-01-01"),  # a date in YAML 1.1
        ("'3'", "3"),
        ("~", None),
        ("", None),
        ("[1, a]", [1, "a"]),
        ("sha256:00", "sha256:00"),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    """By YAML 1.2: a learning rate of 1e-3 must be a number and a class called `no` a word."""
    found = parse_yaml(text, "x")[0]
    assert found == value
    assert type(found) is type(value)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1), st.lists(st.integers() | st.text("xyz", min_size=1)), max_size=5
    )
)
def test_agrees_with_pyyaml(data: dict) -> None:
    """Where YAML 1.1 and 1.2 agree, a second reader must find the same."""
    text = yaml.safe_dump(data)
    assert parse_yaml(text, "x")[0] == yaml.safe_load(text)


def test_lines_are_those_of_an_editor() -> None:
    """A wrong line number sends the reader to the wrong key."""
    _, lines = parse_yaml("a:\n  b: 1\n\nc:\n  - x\n  - {d: 2,\n     e: 3}\n", "x")
    expected = {
        ("a",): 1,
        ("a", "b"): 2,
        ("c",): 4,
        ("c", 0): 5,
        ("c", 1): 6,
        ("c", 1, "d"): 6,
        ("c", 1, "e"): 7,
    }
    assert {path: line for path, line in lines.items() if path} == expected


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        (BOMB, "x:1", "aliases and anchors"),
        ("a: 1\nb: *a", "x:2", "aliases and anchors"),
        ("a: {<<: *b}", "x:1", "aliases and anchors"),
        ("a: 1\nb: 2\na: 3", "x:3", "`a` is given twice, first on line 1"),
        ("t: {a: 1, a: 2}", "x:1", "`t.a` is given twice"),
        ("[" * 100_000, "x:1", "nested more than 20 deep"),
        ("\n".join(" " * i + "a:" for i in range(100)), "x:22", "nested more than 20 deep"),
        ("a: 1\nb: .nan", "x:2", "not a finite number"),
        ("a: -.inf", "x:1", "not a finite number"),
        ("a: 1e999", "x:1", "too large"),
        ("a: " + "9" * 5000, "x:1", "5000 characters"),
        ("a: !!python/object/apply:os.system [ls]", "x:1", "the tag"),
        ("a: !!float 3", "x:1", "the tag"),
        ("a: 1\n---\nb: 2", "x:2", "a second document"),
        ("a: 1\n\tb: 2", "x:2", "not valid YAML"),
        ("a: 1\nb: ]", "x:2", "not valid YAML"),
        ("a: 1\n? [b]\n: c", "x:2", "a key must be a plain word"),
        ("a: \x07", "x", "not valid YAML"),
    ],
)
def test_refuses_with_a_place_and_quickly(text: str, where: str, says: str) -> None:
    """A hostile or broken file must cost neither memory nor time, and must say which line."""
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "x")
    assert caught.value.where == where
    assert says in caught.value.what
    assert caught.value.remedy
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a: 1\n" * 2_000_000, f"larger than {LARGEST_FILE:,} bytes"),
        (b"a: 1\nb: \xff\xfe", "not UTF-8"),
        (b"", "must hold keys and values"),
        (b"- 1\n- 2", "must hold keys and values"),
        (b"just words", "must hold keys and values"),
    ],
    ids=["10 MB", "not text", "empty", "a list", "words"],
)
def test_refuses_files_that_hold_no_keys(tmp_path: Path, content: bytes, says: str) -> None:
    """Ten megabytes must not even be read to their end."""
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(UserError, match=says) as caught:
        read_yaml(path)
    assert str(path) in caught.value.where
    assert time.perf_counter() - start < 1


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    """A missing file, a folder and a name of 5,000 letters are mistakes of the user, not
    tracebacks.
    """
    for path in (tmp_path / "absent.yaml", tmp_path, Path("/dev/zero"), tmp_path / ("x" * 5000)):
        with pytest.raises(UserError):
            read_yaml(path)


class Inner(Section):
    """A group."""

    size: int = Field(default=1, ge=1, description="how large")
    who: tuple[str, ...] | None = Field(default=None, description="for whom")


class Outer(Section):
    """A file."""

    inner: Inner = Field(default=Inner(), description="the group")
    label: int | str = Field(description="the label")


def test_validate_tells_every_mistake_at_once() -> None:
    """A person who mends one mistake per attempt gives up before the last."""
    data, lines = parse_yaml("inner:\n  siez: 3\n  size: 0\n  who: [a, 2]\n", "f")
    with pytest.raises(UserErrors) as caught:
        validate(Outer, data, lines, "f")
    told = {(error.where, error.what) for error in caught.value.errors}
    assert told == {
        ("f:2", "inner.siez: unknown key"),
        ("f:3", "inner.size: found 0; a number greater than or equal to 1 is needed"),
        ("f:4", "inner.who[1]: found 2; text (numbers in quotes) is needed"),
        ("f:1", "label: missing"),
    }
    assert "did you mean `size`?" in str(caught.value)


def test_validate_is_strict_about_types() -> None:
    """`size: true` taken for 1, or a label "3" for 3, would run something else than was written."""
    assert validate(Outer, {"label": "3"}, {}, "f").label == "3"
    assert validate(Outer, {"label": 3}, {}, "f").label == 3
    for wrong in (True, "1", 1.0, None, [1]):
        with pytest.raises(UserErrors, match=r"inner\.size: found"):
            validate(Outer, {"label": 1, "inner": {"size": wrong}}, {}, "f")


def test_thousands_of_mistakes_stay_readable() -> None:
    """A wrong file must not fill the terminal, and keys that carry control characters must not
    reach it.
    """
    data = {"label": 1, **{f"k{i}": 1 for i in range(5000)}, "\x1b[31m": 1}
    with pytest.raises(UserErrors) as caught:
        validate(Outer, data, {}, "f")
    assert len(str(caught.value).splitlines()) < 120
    assert "and 4951 more mistakes" in str(caught.value)
    with pytest.raises(UserErrors) as caught:
        validate(Outer, {"label": 1, "\x1b[31m": "x"}, {}, "f")
    assert "\x1b" not in str(caught.value)
