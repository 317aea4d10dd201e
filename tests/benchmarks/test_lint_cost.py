"""What a lint costs is measured, beside one pass of the network."""

import pytest

from jaxnorm.benchmarks.lint import measured

TRANSFORMER = "transformer, 12 layers"


@pytest.mark.slow
def test_a_lint_beside_a_pass() -> None:
    linted, alone = (measured(what, TRANSFORMER) for what in ("lint", "pass"))
    assert (linted["norms"], linted["noises"]) == (3, 4)
    assert 0 < linted["following"] < linted["seconds"]
    assert linted["memory"] < 2 * alone["memory"]


def test_a_measurement_that_fails_says_so() -> None:
    with pytest.raises(RuntimeError, match="the lint of no network failed"):
        measured("lint", "no network")
