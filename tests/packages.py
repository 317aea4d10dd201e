"""What the tests of programs that compile for absent devices share: compilers that are not there, or only seem to be."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


def install(folder: Path, version: str, *names: str) -> None:
    """Puts into a folder what says that these packages are there, and nothing of them."""
    for name in names:
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def assert_lack_is_said_in_a_line(
    main: Callable[[Sequence[str]], int], variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs a command without the compiler that this variable of the environment should name."""
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert f"{variable} must name the folder" in err
    assert "pip install" in err
