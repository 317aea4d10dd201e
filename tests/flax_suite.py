"""Runs Flax's own tests of its norms, Dropout and attention with jaxnorm's classes and attention in the place of Flax's.

    pip download --no-deps --no-binary flax flax==VERSION && tar xf flax-VERSION.tar.gz
    python tests/flax_suite.py flax-VERSION

VERSION is best the installed one. All files of Flax's tests that mention one of these are run, with those of linen and of nnx
replaced together; tests that fail are run again with Flax's own, to tell which of them fail because of jaxnorm's. Layers of
attention stay Flax's, and call our function. This file is also the pytest plugin that replaces them.
"""

import argparse
import inspect
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple
from xml.etree import ElementTree

_CLASSES = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "WeightNorm", "SpectralNorm", "Dropout")
_NAMES = (*_CLASSES, "dot_product_attention")
_MENTIONED = re.compile(rf"\b({'|'.join(_NAMES)})\b|\bMultiHead\w*Attention\b")


class Outcome(NamedTuple):
    """Names of tests by how they ended; `failed` ones pass with Flax's own classes, `failed_before` fail with those too."""

    passed: set[str]
    skipped: set[str]
    failed: set[str]
    failed_before: set[str]


def pytest_configure() -> None:
    """Puts jaxnorm's classes wherever a module of Flax holds its own."""
    import flax.linen
    import flax.nnx

    import jaxnorm.linen
    import jaxnorm.nnx

    ours = {
        getattr(flax_api, name): getattr(our_api, name)
        for flax_api, our_api in ((flax.linen, jaxnorm.linen), (flax.nnx, jaxnorm.nnx))
        for name in _NAMES
    }
    for module in [m for name, m in sys.modules.items() if name.partition(".")[0] == "flax"]:
        for name, value in list(vars(module).items()):
            if isinstance(value, type | FunctionType) and value in ours:
                setattr(module, name, ours[value])
            elif isinstance(value, type):
                _replace_defaults(value, ours)
    for name in _NAMES:
        assert getattr(flax.linen, name) is getattr(jaxnorm.linen, name)
        assert getattr(flax.nnx, name) is getattr(jaxnorm.nnx, name)


def _replace_defaults(kind: type, ours: dict[Any, Any]) -> None:
    """Puts our functions in the place of Flax's where they are the defaults of a class's arguments, or of its fields."""
    for name, value in list(vars(kind).items()):
        if isinstance(value, FunctionType) and value in ours:
            setattr(kind, name, ours[value])
    for field in getattr(kind, "__dataclass_fields__", {}).values():
        if isinstance(field.default, FunctionType):
            field.default = ours.get(field.default, field.default)
    init = vars(kind).get("__init__")
    init = inspect.unwrap(init) if init else init
    if isinstance(init, FunctionType):
        init.__defaults__ = init.__defaults__ and tuple(_ours(value, ours) for value in init.__defaults__)
        init.__kwdefaults__ = init.__kwdefaults__ and {name: _ours(value, ours) for name, value in init.__kwdefaults__.items()}


def _ours(value: Any, ours: dict[Any, Any]) -> Any:
    return ours.get(value, value) if isinstance(value, FunctionType) else value


def run_suite(folder: Path) -> Outcome:
    """Runs the tests of the unpacked source distribution in `folder`."""
    tests = folder / "tests"
    files = sorted(f for f in tests.rglob("*_test.py") if _MENTIONED.search(f.read_text()))
    if not files:
        raise ValueError(f"no test in {tests} mentions {', '.join(_NAMES)}: is it an unpacked source distribution of Flax?")
    with_ours = _pytest(folder, [str(f) for f in files], "-p", "flax_suite")
    failed = _ended(with_ours, "failed")
    before: set[str] = set()
    if failed:
        ids = [f"{tests / case.path}{case.node}" for case in with_ours if case.name in failed]
        before = _ended(_pytest(folder, ids), "failed")
    return Outcome(_ended(with_ours, "passed"), _ended(with_ours, "skipped"), failed - before, failed & before)


class _Case(NamedTuple):
    name: str
    path: str
    node: str
    end: str


def _ended(cases: list[_Case], end: str) -> set[str]:
    return {case.name for case in cases if case.end == end}


def _pytest(folder: Path, tests: list[str], *options: str) -> list[_Case]:
    """Runs tests in a process of their own, with none of the configuration of this project or of Flax."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as scratch:
        report, config = Path(scratch) / "report.xml", Path(scratch) / "pytest.ini"
        config.write_text("[pytest]\njunit_family = xunit1\n")
        command = [sys.executable, "-m", "pytest", "-q", "-c", str(config), f"--rootdir={folder / 'tests'}"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}", *options, *tests]
        # Not in the folder itself: its `flax` would be imported instead of the installed one.
        result = subprocess.run(
            command, cwd=folder / "tests", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if result.returncode not in (0, 1):  # neither all passed nor some failed: the tests did not run
            raise RuntimeError(f"pytest ended with status {result.returncode}:\n{result.stdout[-4000:]}")
        return [_case(element) for element in ElementTree.parse(report).iter("testcase")]


def _case(element: ElementTree.Element) -> _Case:
    path, name = element.attrib["file"], element.attrib["name"]
    inside = element.attrib["classname"].removeprefix(path.removesuffix(".py").replace("/", ".")).lstrip(".")
    node = "".join(f"::{part}" for part in (inside, name) if part)
    ends = {child.tag for child in element}
    end = "failed" if ends & {"failure", "error"} else "skipped" if "skipped" in ends else "passed"
    return _Case(f"{path}{node}", path, node, end)


def main() -> int:
    """Runs the tests of the folder on the command line, and prints what came out."""
    parser = argparse.ArgumentParser(description="Run Flax's tests of its norms, Dropout and attention with jaxnorm's.")
    parser.add_argument("folder", type=Path, help="an unpacked source distribution of Flax")
    folder = parser.parse_args().folder.resolve()
    try:
        outcome = run_suite(folder)
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"passed {len(outcome.passed)}, skipped {len(outcome.skipped)}")
    print(f"failed with jaxnorm's classes and not with Flax's: {len(outcome.failed)}", *sorted(outcome.failed), sep="\n  ")
    print(f"failed with either: {len(outcome.failed_before)}", *sorted(outcome.failed_before), sep="\n  ")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
