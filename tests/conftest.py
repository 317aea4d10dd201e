"""Configuration of every test: 8 CPU devices, key reuse is an error, no accidental promotion or broadcasting."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from hypothesis import settings

_DEVICES = 8
_JAX_DEFAULTS = ("training", "experiments")  # folders of tests in which arrays may promote, as in jax's defaults

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", _DEVICES)
jax.config.update("jax_debug_key_reuse", True)

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "jax_defaults: dtypes and ranks may promote, as in jax's defaults")


def pytest_sessionstart(session: pytest.Session) -> None:
    assert jax.device_count() == _DEVICES, f"the tests need {_DEVICES} CPU devices, got {jax.devices()}"


@pytest.fixture(autouse=True)
def _promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Makes promotion of dtypes and ranks an error, but where the folder or the marker `jax_defaults` says otherwise."""
    folder = Path(request.path).relative_to(Path(__file__).parent).parts[0]
    if folder in _JAX_DEFAULTS or request.node.get_closest_marker("jax_defaults"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
