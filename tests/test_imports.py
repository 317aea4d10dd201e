"""What `import jaxnorm` brings along, and which way imports point."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxnorm

PACKAGE = Path(jaxnorm.__file__).parent
LAYERS = (  # a module may import from layers above its own, and from modules of its own layer or folder
    ("_types", "_checks", "_axes", "_compiler", "_equations", "_tables"),
    ("_moments", "_covariance", "_inverse_root", "_normalize", "_running", "_parts", "_batch_layer", "_sample_layer"),
    ("_bits", "_packed_bits", "_spread_bits", "_normal", "_noise"),
    ("_norm", "_dropout"),
    ("_modules", "_noise_modules", "_attention", "_adoption", "_calling", "_conversion", "_picture", "_progress", "_told"),
    (
        "linen",
        "nnx",
        "training",
        "uncertainty",
        "diagnostics",
        "interop",
        "initializers",
        "losses",
        "schedules",
        "statistics",
        "folding",
    ),
    ("experiments", "benchmarks"),
    ("_functions", "_lint_command", "__main__"),
)
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("jaxnorm", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_name(path): path for path in (*SOURCES, PACKAGE / "__init__.py")}


def layer(part: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if part in names)


def imported(path: Path) -> Iterator[str]:
    """Names of modules that a file imports, anywhere in it, also for a type checker alone; and of what it takes from others'."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES or node.module not in MODULES else node.module


def own_parts(path: Path) -> set[str]:
    """The parts of the package, of its top level, that a file imports from."""
    names = {name.split(".")[1] if "." in name else "" for name in imported(path) if name.split(".")[0] == "jaxnorm"}
    return {name for name in names if name == "" or (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()}


def test_import_loads_neither_flax_nor_optax_nor_orbax() -> None:
    program = "import sys, jaxnorm; print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent).stdout
    heavy = {"flax", "optax", "orbax", "chex", "tqdm", "rich", "matplotlib", "sklearn", "tensorflow", "torch"}
    assert "jax" in loaded.split()
    assert not heavy & set(loaded.split())


def test_import_draws_and_compiles_nothing_and_starts_no_backend() -> None:
    program = "import jaxnorm; from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=PACKAGE.parent)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for part in own_parts(path):
        if part == "":  # the public functions, for those who use them as a user does
            assert layer(own) >= layer("linen"), f"{path} imports jaxnorm itself"
            continue
        assert layer(part) <= layer(own), f"{path} imports {part}, which is built on it"
        if part in ("linen", "nnx"):
            assert own == part or layer(own) > layer("linen"), f"{path} imports {part}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_stay_in_their_package(path: Path) -> None:
    """Nothing reaches into the private parts of jax or Flax, which change without notice."""
    for name in imported(path):
        assert not name.startswith(("jax._src", "jax.extend", "flax.core.lift", "optax._src")), f"{path} imports {name}"


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Ways through a graph that come back to where they were, at least one if there is any."""
    done: set[str] = set()
    found = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            found.append(" -> ".join((*above[above.index(name) :], name)))
        elif name not in done:
            for other in sorted(edges[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in edges:
        visit(name, ())
    return found


def test_no_module_imports_itself_in_a_circle() -> None:
    edges = {name: {found for found in imported(path) if found in MODULES} for name, path in MODULES.items()}
    assert sum(map(len, edges.values())) > len(MODULES)
    assert not circles(edges)


def test_circles_are_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b -> c -> b"]
    assert circles({"a": {"a"}}) == ["a -> a"]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize(
    "line, name",
    [
        ("import jaxnorm.experiments._report", "jaxnorm.experiments._report"),
        ("import jaxnorm.experiments._report as r", "jaxnorm.experiments._report"),
        ("from jaxnorm.experiments import _report", "jaxnorm.experiments._report"),
        ("from jaxnorm.experiments._report import Table", "jaxnorm.experiments._report"),
        ("if TYPE_CHECKING:\n    from jaxnorm.experiments._report import Table", "jaxnorm.experiments._report"),
        ("def f():\n    from jaxnorm.experiments import describe", "jaxnorm.experiments"),
        ("from jaxnorm import dropout", "jaxnorm"),
        ("from jax import _src", "jax._src"),
    ],
)
def test_imports_are_seen_however_they_are_written(tmp_path: Path, line: str, name: str) -> None:
    file = tmp_path / "file.py"
    file.write_text(line)
    assert list(imported(file)) == [name]


def test_the_only_places() -> None:
    """One place draws bits, one computes variances, one takes a reciprocal root, one of matrices, one makes noise."""
    only = {
        "lax.rsqrt": {"_normalize.py"},
        "jax.random.bits": {"_bits.py", "_noise.py"},
        "lax.erf_inv": {"_noise.py"},
        "jnp.var": set(),
        "jnp.std": set(),
        "jnp.mean": {"_moments.py"},
        "jax.random.bernoulli": set(),
        "jax.random.normal": {"weights.py"},
        "jax.random.uniform": set(),
        "lax.psum": {"_moments.py"},
        "jnp.linalg.eigh": {"_inverse_root.py"},
    }
    core = [path for path in SOURCES if layer(path.relative_to(PACKAGE).parts[0].removesuffix(".py")) <= layer("_modules")]
    for path in core:
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        for name, places in only.items():
            assert name not in calls or path.name in places, f"{path} calls {name}"
