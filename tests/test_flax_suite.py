"""Flax's own tests pass with jaxnorm's classes and attention instead of Flax's; `flax_suite.py` says where they come from."""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
from flax_suite import run_suite

pytestmark = pytest.mark.slow

# Subtracts in float32 a mean that is far from 0, and asks for its rounding: twice the error of ours (1.0e-3 and 4.7e-4).
ROUNDED = {"linen/linen_test.py::NormalizationTest::test_instance_norm3"}
# Ask for Flax's words where feature_axes name the batch's axis: ours name the argument and its value.
WORDS = {f"linen/linen_test.py::NormalizationTest::test_instance_norm_raise_error{i}" for i in range(4)}

# Ask for Flax's words, of 0.12.12, and that a rate of 1 is refused: ours leaves nothing.
RATES = {f"nnx/nn/attention_test.py::TestDropoutRateValidation::test_invalid_dropout_args{i}" for i in range(5)}


@pytest.mark.first
def test_flax_own_tests_pass_with_our_classes(tmp_path):
    folder = os.environ.get("FLAX_SOURCE")
    outcome = run_suite(Path(folder) if folder else downloaded(tmp_path))
    assert outcome.failed <= ROUNDED | WORDS | RATES
    assert len(outcome.passed) > 1000


def downloaded(folder: Path) -> Path:
    """Returns the unpacked source distribution of the installed Flax, or fails: without it nothing is tested."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "flax", f"flax=={version('flax')}"]
    result = subprocess.run([*command, "--dest", str(folder)], capture_output=True, text=True)
    if result.returncode:
        pytest.fail(
            f"{' '.join(command)} failed, so that Flax's tests cannot be run; unpack a source distribution of Flax and name its "
            f"folder in FLAX_SOURCE:\n{result.stderr}"
        )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


SAMPLE = """
from flax import linen, nnx

def test_has_our_classes():
    assert all(api.Dropout.__module__.startswith("jaxnorm.") for api in (linen, nnx))
    assert all(api.dot_product_attention.__module__.startswith("jaxnorm.") for api in (linen, nnx))
    assert linen.MultiHeadDotProductAttention(2).attention_fn is linen.dot_product_attention
    assert linen.SelfAttention(2).attention_fn is linen.dot_product_attention
    assert nnx.MultiHeadAttention(2, 4, rngs=nnx.Rngs(0)).attention_fn is nnx.dot_product_attention
    for name in ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"):
        assert all(getattr(api, name).__module__.startswith("jaxnorm.") for api in (linen, nnx))

class TestDropout:
    def test_needs_the_class_of_flax(self):
        assert nnx.Dropout.__module__.startswith("flax.")

    def test_fails_always(self):
        assert linen.Dropout is nnx.Dropout
"""


def test_failures_that_are_ours_are_told_from_those_of_flax(tmp_path):
    (tmp_path / "tests" / "nn").mkdir(parents=True)
    (tmp_path / "tests" / "nn" / "sample_test.py").write_text(SAMPLE)
    (tmp_path / "tests" / "other_test.py").write_text("def test_of_something_else():\n    assert False\n")
    assert run_suite(tmp_path) == (
        {"nn/sample_test.py::test_has_our_classes"},
        set(),
        {"nn/sample_test.py::TestDropout::test_needs_the_class_of_flax"},
        {"nn/sample_test.py::TestDropout::test_fails_always"},
    )


def test_folder_without_tests_raises(tmp_path):
    with pytest.raises(ValueError, match=r"no test in .* mentions BatchNorm, LayerNorm, RMSNorm"):
        run_suite(tmp_path)
