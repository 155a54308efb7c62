"""Names in files and on terminals: long ones, and those that an encoding does not have."""

import io
import sys
from pathlib import Path

import pytest

from covidjax import command, files


@pytest.mark.parametrize("name", ["x" * 255, "\xe9" * 127, "x" * 250 + ".json"])
def test_files_and_folders_may_have_the_longest_names_that_there_are(tmp_path: Path, name: str) -> None:
    files.write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"
    with files.new_folder(tmp_path / "folders" / name) as folder:
        (folder / "a").touch()
    assert [path.name for path in (tmp_path / "folders").iterdir()] == [name]


def test_shortened_names_differ_where_the_names_do() -> None:
    names = ["x" * 300 + str(number) for number in range(3)]
    short = [files.shortened(name) for name in names]
    assert len(set(short)) == 3
    assert {len(name.encode()) for name in short} == {files.MOST_BYTES}
    assert files.shortened("short.png") == "short.png"


def test_text_that_utf8_cannot_hold_is_written_as_escapes(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.txt", "r\udcf6")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "r\\udcf6"


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    command.run(lambda arguments: print("L\xe9sion \udcf6"))
    assert written.getvalue() == b"L\\xe9sion \\udcf6\n"
