"""YAML as plain data: what is read, what is refused, and where."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fleetsim.errors import ScenarioError
from fleetsim.scenario.source import MAX_BYTES, parse_tree, parse_value, read_tree

from .conftest import SMALL


def plain(text: str) -> object:
    tree, findings = parse_tree(text, "x.yaml")
    assert findings == []
    return tree.plain()


def refused(text: str) -> ScenarioError:
    with pytest.raises(ScenarioError) as caught:
        parse_tree(text, "x.yaml")
    return caught.value


def test_scalars_follow_yaml_1_2() -> None:
    text = (
        "{a: 1e3, b: NO, c: 010, d: 12:30:00, e: 2001-01-01, f: ~, g: 0x10, h: 0o10, i: 1_000, j: '5', k: true, l: -7}"
    )
    expected = {"a": 1000.0, "b": "NO", "c": 10, "d": "12:30:00", "e": "2001-01-01", "f": None, "g": 16, "h": 8}
    assert plain(text) == {**expected, "i": 1000, "j": "5", "k": True, "l": -7}


def test_infinite_and_absurd_numbers_are_read_not_crashed_on() -> None:
    values = plain("{a: .inf, b: -.inf, c: .nan, d: 1e999, e: " + "9" * 5000 + "}")
    assert isinstance(values, dict)
    assert values["a"] == math.inf
    assert values["b"] == -math.inf
    assert math.isnan(values["c"])
    assert values["e"] == "9" * 5000


def test_anchors_aliases_flow_and_merge_keys() -> None:
    assert plain("a: &x {p: 1, q: [1, 2]}\nb: *x\nc: {<<: *x, p: 3}\n") == {
        "a": {"p": 1, "q": [1, 2]},
        "b": {"p": 1, "q": [1, 2]},
        "c": {"p": 3, "q": [1, 2]},
    }


def test_yaml_1_1_cannot_be_switched_on() -> None:
    assert plain("%YAML 1.1\n---\na: NO\nb: on\n") == {"a": "NO", "b": "on"}


def test_places_are_one_based() -> None:
    tree, _ = parse_tree("a:\n  b: [1, 2]\n", "x.yaml")
    node, exists = tree.descend(("a", "b", 1))
    assert exists
    assert (node.file, node.line, node.column) == ("x.yaml", 2, 10)


def test_every_duplicate_key_is_found_with_its_line() -> None:
    _, findings = parse_tree("a: 1\nb: {c: 1, c: 2}\na: 2\n", "x.yaml")
    assert [(f.line, f.column, f.path) for f in findings] == [(2, 11, "b.c"), (3, 1, "a")]
    assert "first in line 1" in findings[1].message


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "!!python/name:os.system ''",
        "!custom {a: 1}",
        "!!binary aGk=",
        "!!set {a}",
    ],
)
def test_tags_are_refused_and_never_acted_on(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, findings = parse_tree(f"a: 1\nb: {tag}\n", "x.yaml")
    assert [(f.line, f.path) for f in findings] == [(2, "b")]
    assert "run no code" in findings[0].message
    assert list(tmp_path.iterdir()) == []


def test_core_tags_are_fine() -> None:
    assert plain("{a: !!str 5, b: !!int '5', c: !!float 2, d: !!map {}, e: !!seq []}") == {
        "a": "5",
        "b": 5,
        "c": 2.0,
        "d": {},
        "e": [],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("- a\n- b\n", "found a list"),
        ("just words\n", "found text"),
        ("42\n", "found a number"),
        ("a: 1\n---\nb: 2\n", "more than one YAML document"),
        ("a: [1, 2\n", "not valid YAML"),
        ("a: *nowhere\n", "not valid YAML"),
        ("a:\n\t- b\n", "not valid YAML"),
        ("a: " + "[" * 200 + "]" * 200, "nested too deeply"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("a: \x07\n", "not valid YAML"),
        ("a: \x85\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace") + "\n\x00", "not valid YAML"),
    ],
)
def test_unusable_documents(text: str, message: str) -> None:
    findings = refused(text).findings
    assert len(findings) == 1
    assert message in findings[0].message
    assert findings[0].file == "x.yaml"


def test_alias_bomb() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "once its aliases are followed" in str(refused("\n".join(lines)))


@pytest.mark.parametrize(
    ("data", "message", "line"),
    [
        (b"\xff\xfe\x00\x01", "NUL", 1),
        (b"a: 1\nb: \xff\n", "not UTF-8", 2),
        (b"a: 1\nb: \0\n", "NUL", 2),
        (b"#" * (MAX_BYTES + 1), "larger than", None),
        (bytes(range(1, 256)) * 8, "not UTF-8", 2),
    ],
)
def test_unusable_bytes(tmp_path: Path, data: bytes, message: str, line: int | None) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    with pytest.raises(ScenarioError) as caught:
        read_tree(path, "x.yaml")
    assert message in caught.value.findings[0].message
    assert caught.value.findings[0].line == line


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert read_tree(path, "x.yaml")[0].plain()["name"] == "small"


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a" * 300, "nul\0"])
def test_what_is_not_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ScenarioError):
        read_tree(tmp_path / name, name)


def test_override_values_are_yaml() -> None:
    assert parse_value("{a: [1, 2 s]}", "--set x").plain() == {"a": [1, "2 s"]}
    assert parse_value("", "--set x").plain() is None
    with pytest.raises(ScenarioError, match="run no code"):
        parse_value("!!python/name:os.system x", "--set x")
