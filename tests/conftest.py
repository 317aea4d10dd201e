"""Configuration of every test: 8 CPU devices, key reuse is an error, no accidental promotion or broadcasting."""

import gc
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from tiers import put_crossings_behind_slow

_DEVICES = 8
_TESTS_BETWEEN_CLEARINGS = 100
_tests_run = itertools.count(1)
_JAX_DEFAULTS = ("training", "experiments")  # folders of tests in which arrays may promote, as in jax's defaults

if importlib.util.find_spec("hypothesis"):  # a machine with an accelerator may be without
    from hypothesis import settings

    settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=8, database=None)
    settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--accelerator",
        choices=("found", "cpu"),
        default="found",
        help="with -m accelerator: the device that jax finds beside the CPU, or a second CPU device in its place",
    )


def _on_accelerator(config: pytest.Config) -> bool:
    return config.option.markexpr == "accelerator" and config.option.accelerator == "found"


def _leaves_out_slow_ones(config: pytest.Config) -> bool:
    return "not slow" in config.option.markexpr


def _xla_flags(config: pytest.Config) -> str:
    """How XLA makes machine code, of which nothing is jaxnorm's: without optimizations, which spares a sixth of the time.

    The tests that run at first have it made in one piece too and, where there is a choice, by the older emitters, which take half
    the time. The slow tests have the others, as newer versions of jax do.
    """
    flags = ["--xla_backend_optimization_level=0"]
    if _leaves_out_slow_ones(config):
        flags += ["--xla_cpu_parallel_codegen_split_count=1"]
        flags += ["--xla_cpu_use_fusion_emitters=false"] if jax.__version_info__ < (0, 11) else []
    return " ".join(flags)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "jax_defaults: dtypes and ranks may promote, as in jax's defaults")
    if not _on_accelerator(config):
        jax.config.update("jax_platforms", "cpu")
        os.environ["XLA_FLAGS"] = f"{_xla_flags(config)} {os.environ.get('XLA_FLAGS', '')}"
    jax.config.update("jax_num_cpu_devices", _DEVICES)
    jax.config.update("jax_debug_key_reuse", True)
    if _leaves_out_slow_ones(config):
        jax.config.update("jax_traceback_in_locations_limit", 0)  # of the user's code, which programs have in them
    # Tests make functions of their own again and again whose programs are the same: most of them are compiled already.
    cache = tempfile.TemporaryDirectory()
    config.add_cleanup(cache.cleanup)
    jax.config.update("jax_compilation_cache_dir", cache.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # What jax keeps of programs is much and no garbage: to go through it less often spares a tenth of the time.
    gc.set_threshold(20_000, 10, 50)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One process with an accelerator, whose memory the first one takes."""
    return 1 if _on_accelerator(config) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    put_crossings_behind_slow(items)
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


def pytest_sessionstart(session: pytest.Session) -> None:
    found = jax.devices("cpu")
    assert len(found) == _DEVICES, f"the tests need {_DEVICES} CPU devices, got {found}"


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Lets go of compiled programs now and then: what is needed again comes from the compilation cache.

    Each program maps memory of its own, and Linux ends a process that maps more than 65,530 pieces.
    """
    if next(_tests_run) % _TESTS_BETWEEN_CLEARINGS == 0:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Makes promotion of dtypes and ranks an error, but where the folder or the marker `jax_defaults` says otherwise."""
    folder = Path(request.path).relative_to(Path(__file__).parent).parts[0]
    if folder in _JAX_DEFAULTS or request.node.get_closest_marker("jax_defaults"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
