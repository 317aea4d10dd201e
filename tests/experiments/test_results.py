"""Files of results: whole or not at all, and what is said of those that cannot be written."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxnorm._picture import save_picture
from jaxnorm.experiments._report import Results, Table, WriteError, markdown_page, write_csv

LONG = [[number] for number in range(10_000)]


@pytest.fixture
def no_space() -> Iterator[None]:
    """Lets no file grow beyond 1,000 bytes, which fails where a full disk does: in a write, or when a buffer is flushed."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_written_and_named(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write("b.csv", lambda path: write_csv(path, ["n"], [[1]]))
    results.write("a.md", lambda path: path.write_text("a"))
    assert results.summary() == f"Written to {tmp_path}: b.csv, a.md"
    assert (tmp_path / "b.csv").read_text() == "n\n1\n"
    assert names(tmp_path) == ["a.md", "b.csv"]


def _csv(path: Path) -> None:
    write_csv(path, ["n"], LONG)


def _markdown(path: Path) -> None:
    path.write_text(markdown_page("heading", ["text"], [Table("title", ["a"], [["cell" * 1000]])]), encoding="utf-8")


def _picture(path: Path) -> None:
    save_picture(path, lambda figure: figure.subplots().plot([1, 2]), title="title", size=(4, 3))


@pytest.mark.parametrize("name, write", [("file.csv", _csv), ("file.md", _markdown), ("file.png", _picture)])
def test_a_file_that_does_not_fit_is_named_and_loses_neither_others_nor_an_older_one(
    tmp_path: Path, no_space: None, name: str, write
) -> None:
    (tmp_path / name).write_text("older")
    results = Results(tmp_path)
    results.write("before.csv", lambda path: path.write_text("1"))
    results.write(name, write)
    results.write("after.csv", lambda path: path.write_text("2"))
    message = f"^cannot write '{tmp_path}/{name}': File too large; written to {tmp_path}: before.csv, after.csv$"
    with pytest.raises(WriteError, match=message):
        results.summary()
    assert (tmp_path / name).read_text() == "older"
    assert names(tmp_path) == sorted([name, "before.csv", "after.csv"])


def test_every_file_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    results = Results(tmp_path)
    results.write("taken", lambda path: path.write_text("1"))
    results.write("none.csv", lambda path: path.open())
    message = "cannot write '.*/taken': Is a directory; '.*/none.csv': No such file or directory; written to .*: nothing"
    with pytest.raises(WriteError, match=message):
        results.summary()


def test_other_errors_pass_and_leave_nothing_behind(tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Results(tmp_path).write("file.csv", interrupted)
    assert not names(tmp_path)
