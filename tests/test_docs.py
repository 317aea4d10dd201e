"""Everything that the documentation shows runs: examples in docstrings, blocks of the README, notebooks."""

import doctest
import functools
import importlib
import pkgutil
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import jaxnorm

ROOT = Path(jaxnorm.__file__).parent.parent
README = ROOT / "README.md"
MODULES = sorted(m.name for m in pkgutil.walk_packages(jaxnorm.__path__, "jaxnorm.") if not m.name.endswith("__main__"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.jax_defaults


def python_blocks() -> list[str]:
    text = README.read_text() if README.exists() else ""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["jaxnorm", *MODULES])
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples_in_docstrings() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    counts = {name: sum(len(test.examples) for test in finder.find(importlib.import_module(name))) for name in MODULES}
    assert counts["jaxnorm._norm.batch"] > 0
    assert counts["jaxnorm._dropout.elementwise"] > 0


def test_readme_exists_and_shows_code() -> None:
    assert README.exists(), "README.md is missing"
    assert python_blocks(), "README.md shows no Python"


@functools.cache
def run_block(number: int) -> dict[str, object]:
    """Runs a block of the README after those before it, each once in a process, and returns the names that there are then."""
    scope = run_block(number - 1) if number else {"__name__": "readme"}
    exec(compile(python_blocks()[number], str(README), "exec"), scope)
    return scope


@pytest.mark.parametrize("number", range(max(1, len(python_blocks()))))
def test_blocks_of_the_readme(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block runs after those before it, that it may build on."""
    assert README.exists(), "README.md is missing"
    monkeypatch.chdir(tmp_path)
    run_block(number)


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS, "notebooks/ holds no notebook"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_hold_their_outputs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # they run as for a reader: the tests' flags make programs slow
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "stored without having been run"
    assert any(cell.outputs for cell in code), "stored without outputs"
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
