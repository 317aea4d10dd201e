"""The report: tables, Markdown, pictures, and the file of figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxnorm.benchmarks import _report
from jaxnorm.benchmarks._tables import format_number, main_tables, time_tables

ENVIRONMENT = {
    "date": "2026-01-02T03:04+00:00", "backend": "cpu", "device": "A Processor", "devices": 1, "processor": "A Processor",
    "cores": 2, "system": "An OS", "python": "3.11.1", "versions": {"jaxnorm": "1.2.3", "jax": "4.5.6"},
}  # fmt: skip


def one(name: str, role: str, milliseconds: float, **figures: Any) -> dict[str, Any]:
    known = {
        "name": name, "role": role, "median_seconds": milliseconds / 1e3, "lower_quartile_seconds": 0.9e-3 * milliseconds,
        "upper_quartile_seconds": 1.1e-3 * milliseconds, "seconds": [milliseconds / 1e3], "calls": 1,
        "times_baseline": milliseconds / 2, "speed_over_flax_linen": 20 / milliseconds,
        "speed_over_best_peer": 10 / milliseconds, "bytes_per_second": 4e9, "share_of_copy": 0.5,
        "temporary_bytes": 2**20, "residual_bytes": 2**19, "residual_input": False, "trace_seconds": 0.25,
        "compile_seconds": 1.5,
    }  # fmt: skip
    return known | figures


NO_COSTS = dict.fromkeys(("temporary_bytes", "residual_bytes", "residual_input", "trace_seconds", "compile_seconds"))


def case(row: str, contenders: list[dict[str, Any]] | None = None, **about: Any) -> dict[str, Any]:
    known = {
        "row": row, "title": row.capitalize(), "kind": "forward and backward", "shape": [512, 512], "dtype": "float32",
        "devices": None, "curve": "", "headline": True, "baseline": "plain pass", "elements": 2**18, "bytes": 2**20, "failed": {},
        "contenders": contenders or [
            one("plain pass", "baseline", 2.0), one("jaxnorm", "ours", 4.0, residual_bytes=0, residual_input=True),
            one("flax linen", "peer", 20.0),
            one("torch", "peer", 10.0, temporary_bytes=None, trace_seconds=None, compile_seconds=None),
        ],
    }  # fmt: skip
    return known | about


def growth(row: str, curve: str, values: list[int]) -> list[dict[str, Any]]:
    about = [{"elements": value} if curve == "elements" else {"devices": value} for value in values]
    return [case(row, curve=curve, headline=False, **extra) for extra in about]


CASES = [
    case("dropout"),
    case("dropout", shape=[8, 4]),
    case("dropout", dtype="bfloat16"),
    case(
        "dropout_call", [one("plain pass", "baseline", 2.0, **NO_COSTS), one("jaxnorm", "ours", 1.0, **NO_COSTS)], headline=False
    ),
    *growth("dropout_growth", "elements", [10_000, 1_000_000]),
    *growth("sync_growth", "devices", [1, 2, 8]),
]
RESULTS = {
    "quick": True,
    "only": ["dropout"],
    "environment": ENVIRONMENT,
    "notes": ["keras is not installed and left out"],
    "cases": CASES,
}


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    _report.write(folder, RESULTS)
    return folder


def tables(*, on_gpu: bool = False) -> dict[str, Any]:
    return {table.title: table for table in main_tables(CASES, on_gpu=on_gpu)}


def test_ratios_stand_beside_how_many_times_as_fast_as_flax() -> None:
    table = tables()["Dropout, forward and backward, float32"]
    assert list(table.columns[1:]) == ["512x512", "8x4"]
    assert table.columns[0].startswith("time over the plain pass's")
    assert table.rows == [
        ("plain pass", "1.00", "1.00"), ("jaxnorm", "2.00 (5.00)", "2.00 (5.00)"), ("flax linen", "10.0 (1.00)", "10.0 (1.00)"),
        ("torch", "5.00 (2.00)", "5.00 (2.00)"),
    ]  # fmt: skip
    assert len(tables()["Dropout, forward and backward, bfloat16"].columns) == 2


def test_memory_and_compilation_are_of_the_first_shape_in_every_type() -> None:
    table = tables()["Dropout, forward and backward: memory and compilation"]
    assert list(table.columns) == [
        "512x512", "temporaries, MiB\nfloat32", "temporaries, MiB\nbfloat16", "kept, times x\nfloat32", "kept, times x\nbfloat16",
        "trace + compile, s",
    ]  # fmt: skip
    assert table.rows[1] == ("jaxnorm", "1.0", "1.0", "0.00 + x", "0.00 + x", "0.25 + 1.50")
    assert table.rows[3] == ("torch", "-", "-", "0.50", "0.50", "-")


def test_what_was_not_measured_has_no_table() -> None:
    assert not [title for title in tables() if title.startswith("Dropout_call") and "memory" in title]


def test_the_overview_has_a_line_for_each_of_ours() -> None:
    overview = main_tables(CASES, on_gpu=False)[0]
    assert overview.title.startswith("At a glance")
    assert overview.rows[0] == ("dropout: jaxnorm", "512x512", "2.00", "5.00", "2.50 (torch)", "1.0", "1.0")
    assert overview.rows[1] == ("dropout call: jaxnorm", "512x512", "0.50", "20.0", "10.0", "-", "-")
    assert len(overview.rows) == 2


def test_growth_is_time_for_an_element_or_over_devices() -> None:
    table = tables()["Dropout_growth, forward and backward"]
    assert list(table.columns[1:]) == ["10,000", "1,000,000"]
    assert table.rows[1] == ("jaxnorm", "400", "4.00")
    table = tables()["Sync_growth, forward and backward"]
    assert list(table.columns[1:]) == ["1 device", "2 devices", "8 devices"]
    assert table.rows[1] == ("jaxnorm", *["4.00 (3.60 - 4.40)"] * 3)


def test_bandwidth_is_shown_on_a_gpu_alone() -> None:
    title = "Dropout, forward and backward: bandwidth"
    assert title not in tables()
    table = tables(on_gpu=True)[title]
    assert len(table.columns) == 4
    assert table.rows[0] == ("plain pass", *["0.50 (4)"] * 3)


def test_times_have_quartiles() -> None:
    table = time_tables(CASES)[0]
    assert table.rows[1] == ("jaxnorm", "4.00 (3.60 - 4.40)", "4.00 (3.60 - 4.40)")


def test_a_contender_that_is_not_in_every_case_leaves_a_gap() -> None:
    found = main_tables([CASES[0], case("dropout", CASES[0]["contenders"][:2], shape=[8, 4])], on_gpu=False)[1]
    assert found.rows[3] == ("torch", "5.00 (2.00)", "-")


def test_only_curves() -> None:
    assert [table.title for table in main_tables(growth("a", "elements", [1, 2]), on_gpu=False)] == ["A, forward and backward"]


@pytest.mark.parametrize("value, text", [
    (0.004, "0.00"), (1.0, "1.00"), (9.994, "9.99"), (9.996, "10.0"), (99.94, "99.9"), (99.96, "100"), (1234.5, "1234"),
    (None, "-"),
])  # fmt: skip
def test_numbers_have_three_digits(value, text) -> None:
    assert format_number(value) == text


def test_the_finding_names_headlines_alone() -> None:
    assert _report.finding(CASES) == "Times as fast as Flax: dropout 5.0"
    assert _report.finding([]) == "jaxnorm beside other libraries"


def test_the_file_of_figures_has_them_all(folder: Path) -> None:
    assert json.loads((folder / "results.json").read_text()) == RESULTS


def test_markdown_says_how_to_repeat_it_where_it_ran_and_what_is_missing(folder: Path) -> None:
    text = (folder / "RESULTS.md").read_text(encoding="utf-8")
    for part in (
        "python -m jaxnorm bench --quick --only dropout", "A Processor, 2 cores", "Python 3.11.1", "jax 4.5.6", "2026-01-02",
        "keras is not installed", "](times.png)", "](curves.png)", "Times as fast as Flax: dropout 5.0.", "*Plain pass*",
    ):  # fmt: skip
        assert part in text


def test_markdown_has_every_table_with_as_many_cells_in_every_line(folder: Path) -> None:
    text = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert text.count("\n## ") == len(main_tables(CASES, on_gpu=False)) + 1
    assert text.count("\n### ") == len(time_tables(CASES))
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
            assert len(block.splitlines()) >= 3


@pytest.mark.parametrize("name", ["times.png", "curves.png"])
def test_pictures_are_pictures(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") > 2000


def test_a_picture_is_drawn_of_what_there_is(tmp_path: Path) -> None:
    _report.write(tmp_path, RESULTS | {"cases": CASES[:1]})
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "RESULTS.md", "times.png"}


def test_many_rows_are_several_pictures_of_less_than_150_kilobytes(tmp_path: Path) -> None:
    bars = [case for case in CASES if not case["curve"]]
    many = [bars[0] | {"row": f"row_{number}"} for number in range(10)]
    _report.write(tmp_path, RESULTS | {"cases": many})
    pictures = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert pictures.keys() == {"times.png", "times_2.png"}
    assert max(pictures.values()) < 150_000
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "row_0 to row_8](times.png)" in text
    assert "row_9 to row_9](times_2.png)" in text


def test_the_terminal_shows_tables_notes_and_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _report.write(tmp_path, RESULTS)
    out = capsys.readouterr().out
    for part in (
        "At a glance",
        "2.00 (5.00)",
        "Note: keras is not installed",
        f"Written to {tmp_path}: results.json",
        "curves.png",
    ):
        assert part in " ".join(out.split()) or part in out


def test_a_gpu_is_named() -> None:
    environment = ENVIRONMENT | {"backend": "gpu", "device": "A Card"}
    assert "GPU: A Card; CPU: A Processor, 2 cores" in _report._introduction(RESULTS | {"environment": environment})
