from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cotune import sources
from cotune.errors import DataError


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


def test_lines_are_numbered_as_in_the_file_and_blank_ones_are_skipped(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}\r\n')
    assert sources.read(source) == [(f"{source}:1", {"a": 1}), (f"{source}:3", {"a": 2})]
    assert sources.read(source, limit=1) == [(f"{source}:1", {"a": 1})]


def test_gzip_is_recognised_by_its_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "a.jsonl"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(b'{"a": 1}\n'))
        assert sources.read(str(path)) == [(f"{path}:1", {"a": 1})]


def test_a_line_separator_inside_a_string_does_not_cut_the_line(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '\ufeff{"a": "x\u2028y\x0bz\x85"}\n'.replace("\x0b", ""))
    assert [row for _, row in sources.read(source)] == [{"a": "x\u2028yz\x85"}]


def test_half_a_pair_of_surrogates_becomes_a_question_mark(tmp_path: Path) -> None:
    """No tokenizer reads it, and it cannot be sent; all else stays as it is."""
    kept = {"\u00e9": ["\U0001f600 \u2028\x00 e\u0301", 1.5, None, {"b": True}]}
    line = '{"a": "x\\ud83dy", "\\udc00": ["\\ud83d\\ude00\\ud83d", {"b": "\\ude00"}], "kept": KEPT}\n'
    source = write(tmp_path / "a.jsonl", line.replace("KEPT", json.dumps(kept)))
    [(_, row)] = sources.read(source)
    assert row == {"a": "x?y", "?": ["\U0001f600?", {"b": "?"}], "kept": kept}
    rows, lines = sources.read_with_lines(source)
    assert ([row for _, row in rows], lines) == (
        [row],
        [line.replace("KEPT", json.dumps(kept)).encode()[:-1]],
    )


def test_a_missing_file_is_refused_with_the_cure() -> None:
    with pytest.raises(DataError, match=r"nowhere/rows\.jsonl: no such file .*Give a JSONL file"):
        sources.read("nowhere/rows.jsonl")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read .*Give a readable JSONL file"):
        sources.read(str(tmp_path))


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100)[:-12])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be read"):
        sources.read(str(path))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no rows\. Give a file with one JSON object a line"):
        sources.read(write(tmp_path / "a.jsonl", "\n"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{'a': 1}", "not JSON"),
        (b"[1]", "got a JSON list"),
        (b'{"a": "\xff"}', "not UTF-8 [(]byte 8"),
        (b"[" * 100_000, "not JSON|got a JSON"),
    ],
)
def test_a_line_that_is_no_object_names_file_and_line(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl:2: ({said}).*expected one JSON object on each line"):
        sources.read(str(path))


def test_several_bad_lines_are_reported_at_once_but_not_all(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", "no\n" * 40)
    with pytest.raises(DataError) as caught:
        sources.read(source)
    assert str(caught.value).count("not JSON") == sources.MAX_ERRORS
    assert "there may be more" in str(caught.value)


def test_a_wheel_source_reads_a_file_out_of_the_pinned_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = folder / "evals-3.0.1.post1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("evals/registry/data/mine.jsonl", '{"a": 1}\n')
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "EVALS_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    name = "wheel:evals/registry/data/mine.jsonl"
    assert sources.read(name) == [(f"{name}:1", {"a": 1})]


def fake_hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[Any, ...]]:
    """Stands in for the library `datasets`, which needs the network."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None, *, split: str) -> Any:
        calls.append((path, name, split))
        if isinstance(answer, Exception):
            raise answer
        return answer

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_a_hub_id_names_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch, [{"a": 1}, {"a": 2}])
    assert sources.read("org/name:part@test", limit=1) == [("org/name:part@test[0]", {"a": 1})]
    assert len(sources.read("org/na.me")) == 2
    assert calls == [("org/name", "part", "test"), ("org/na.me", None, "train")]


def test_a_hub_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, ConnectionError("no network\nlong trace"))
    with pytest.raises(
        DataError, match=r"org/name: no such file here.*\(no network\).*give `data` a JSONL file"
    ):
        sources.read("org/name")


def test_a_hub_id_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'cotune\[hub\]'"):
        sources.read("org/name")


def test_an_existing_file_is_read_even_if_it_looks_like_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org").mkdir()
    write(tmp_path / "org" / "name", '{"a": 1}')
    monkeypatch.chdir(tmp_path)
    assert sources.read("org/name") == [("org/name:1", {"a": 1})]


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(DataError, match="name a JSONL file"):
        sources.read("")


def test_lines_come_with_the_rows_as_they_stand_there(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '\ufeff{"a" :1}\r\n\n  {"a":  2} \n{"a": 3}')
    rows, lines = sources.read_with_lines(source)
    assert rows == sources.read(source)
    assert lines == [b'{"a" :1}\r', b'  {"a":  2} ', b'{"a": 3}']


def test_rows_and_lines_come_out_of_one_reading() -> None:
    """A pipe can be read only once, and a file may change between two readings."""
    ends = os.pipe()
    os.write(ends[1], b'{"a": 1}\n{"a": 2}\n')
    os.close(ends[1])
    rows, lines = sources.read_with_lines(f"/dev/fd/{ends[0]}")
    os.close(ends[0])
    assert [row for _, row in rows] == [{"a": 1}, {"a": 2}]
    assert lines == [b'{"a": 1}', b'{"a": 2}']


def test_rows_of_a_hub_are_written_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch, [{"a": "\u00e9"}])
    rows, lines = sources.read_with_lines("org/name")
    assert rows == [("org/name[0]", {"a": "\u00e9"})]
    assert lines == ['{"a": "\u00e9"}'.encode()]
    assert len(calls) == 1
