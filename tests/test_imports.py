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
    ("_types", "_checks", "_axes", "_compiler"),
    ("_moments", "_normalize", "_running", "_bits", "_packed_bits", "_normal", "_noise"),
    ("_norm", "_dropout"),
    ("_modules",),
    ("linen", "nnx", "training", "diagnostics", "interop"),
    ("experiments", "benchmarks"),
    ("__main__",),
)
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer(part: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if part in names)


def imported(path: Path) -> Iterator[str]:
    """Names of modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            base = node.module or ""
            yield from (f"{base}.{alias.name}" if base == "jaxnorm" else base for alias in node.names)


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


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = {".".join(("jaxnorm", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in SOURCES}
    edges = {name: {found for found in imported(path) if found in modules and found != name} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"imports go round: {' -> '.join((*above, name))}"
        if name not in done:
            for other in edges[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in modules:
        visit(name, ())


def test_the_only_places() -> None:
    """One place draws bits, one computes variances, one takes a reciprocal root, one makes noise."""
    only = {
        "lax.rsqrt": {"_normalize.py"},
        "jax.random.bits": {"_bits.py", "_noise.py"},
        "lax.erf_inv": {"_noise.py"},
        "jnp.var": set(),
        "jnp.std": set(),
        "jnp.mean": {"_moments.py"},
        "jax.random.bernoulli": set(),
        "jax.random.normal": set(),
        "jax.random.uniform": set(),
        "lax.psum": {"_moments.py"},
    }
    core = [path for path in SOURCES if layer(path.relative_to(PACKAGE).parts[0].removesuffix(".py")) <= layer("_modules")]
    for path in core:
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        for name, places in only.items():
            assert name not in calls or path.name in places, f"{path} calls {name}"
