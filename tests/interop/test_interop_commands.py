"""`python -m jaxnorm convert` and `inspect`: what they write and show, and how they end where something is wrong."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from numpy.testing import assert_array_equal

from jaxnorm.__main__ import main
from jaxnorm.interop._files import read_safetensors, write_safetensors

pytest.importorskip("safetensors")

STATE = {
    "conv.weight": np.arange(36, dtype=np.float32).reshape(2, 2, 3, 3),
    "bn.weight": np.ones(2, np.float32),
    "bn.bias": np.zeros(2, np.float32),
    "bn.running_mean": np.ones(2, np.float32),
    "bn.running_var": np.array([0, 4], np.float32),
    "bn.num_batches_tracked": np.array(3),
    "old.weight": np.ones((1, 2), np.float32),
}


@pytest.fixture
def torch_file(tmp_path: Path) -> str:
    write_safetensors(tmp_path / "in.safetensors", STATE)
    return str(tmp_path / "in.safetensors")


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Returns the one line with which a command ends that cannot do what it is asked for."""
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert err.startswith(f"jaxnorm {argv[0]}: ")
    return err


@pytest.mark.parametrize("out", ["out.safetensors", "folder/out"])
def test_convert_writes_what_flax_and_inspect_read(
    out: str, torch_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.json").write_text(json.dumps({"conv": "stem/Conv_0", "old": None}))
    assert main(["convert", torch_file, out, "--names", "names.json"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "stem/Conv_0/kernel",
        "[out, in, ...] -> [..., in, out]",
        "1 left out, by names: old.weight.",
        f"Written to {out}",
    ):
        assert words in shown
    if out.endswith(".safetensors"):
        flat = read_safetensors(out)
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            leaves, _ = jax.tree.flatten_with_path(checkpointer.restore(Path(out).resolve()))
        flat = {"/".join(part.key for part in path): np.asarray(leaf) for path, leaf in leaves}
    assert flat.keys() == {
        "params/stem/Conv_0/kernel", "params/bn/scale", "params/bn/bias", "batch_stats/bn/mean", "batch_stats/bn/var"
    }  # fmt: skip
    assert_array_equal(flat["params/stem/Conv_0/kernel"], STATE["conv.weight"].transpose(2, 3, 1, 0))
    assert main(["inspect", out]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "bn 2 1 to 1 0 to 4 1 to 1 1 0 0" in shown
    assert "dead: 1 channels have a variance below 1e-7" in shown


def test_inspect_shows_torch_s_files_in_a_narrow_terminal(
    torch_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", torch_file]) == 0
    out = capsys.readouterr().out
    assert "bn" in out
    assert "Norm layers of" in out


def test_what_is_wrong_is_said_in_a_line(torch_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, bad, names = tmp_path / "there", tmp_path / "bad.json", tmp_path / "names.json"
    there.mkdir()
    bad.write_text("{")
    names.write_text('{"cnov": "a"}')
    out = str(tmp_path / "out")
    for argv, words in (
        (["convert", torch_file, str(there)], "is there already"),
        (["convert", torch_file, out, "--names", str(bad)], "must be a JSON file"),
        (["convert", torch_file, out, "--names", str(names)], "names has 'cnov', and there is no such module"),
        (["convert", torch_file, out, "--names", str(tmp_path / "none.json")], "No such file"),
        (["convert", torch_file, out, "--transposed", "up"], "transposed has 'up'"),
        (["convert", str(bad), out], "is no safetensors file"),
        (["convert", str(tmp_path / "none"), out], "No such file"),
        (["inspect", str(bad)], "is no safetensors file"),
        (["inspect", str(there)], "is no checkpoint"),
        (["inspect", str(tmp_path / "none")], "No such file"),
    ):
        assert words in fails(capsys, *argv)
    assert not Path(out).exists()


def test_help_says_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in (("convert", "--names"), ("inspect", "CHECKPOINT")):
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
        assert words in capsys.readouterr().out
