"""The public functions, by family, as their docstrings describe them.

No function is named here: they are those of `jaxnorm.__all__`, a family is a file, and everything said of them is read from the
docstrings. The first line of a file's is the family's title and, after a colon, what it holds. Of a function's the first sentence
is taken, the paragraph that begins with `Training:`, `Training and inference:` or `Inference ...:`, and the papers in
`References:`, written as `Authors, "Title", where and when, https://...`.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jaxnorm

FOLDERS = ("_norm", "_dropout")
COMMAND = "python -m jaxnorm list --markdown > jaxnorm/FUNCTIONS.md"

_FLAX = ("linen", "nnx")
_NONE = "-"
_PAPER = re.compile(r'([^".]+), "([^"]+)", (.+?), (https://\S+?)(?=[.,;]?(?:\s|$))')
_MODE = re.compile(r"(?:^|(?<=[.;] ))(Training and inference|Training|Inference)( [^:.]+)?: ")
_INTRODUCTION = f"""\
# Functions

Made from the docstrings, by `{COMMAND}`.

x is the input and y the output. A state is used and averaged in training, and used in inference. `help(jaxnorm.batch_norm)`, and
so of every function, has the shapes, options and errors, how it differs from the paper, and an example. The classes of
`jaxnorm.linen` and `jaxnorm.nnx` call the function of their line."""


class Paper(NamedTuple):
    """A paper; `where` is where and when it appeared, and which part of it is meant."""

    authors: str
    title: str
    where: str
    url: str

    @property
    def year(self) -> str:
        """The year, empty if it is not said."""
        return next(iter(re.findall(r"\b(?:19|20)\d\d\b", self.where)), "")

    @property
    def first_authors(self) -> str:
        """The authors, or the first of more than two."""
        names = self.authors.split(", ")
        return self.authors if len(names) <= 2 else f"{names[0]} et al."


class Layer(NamedTuple):
    """A layer.

    Attributes:
      functions: the names of its function and of those that make its parameters and state, if there are such.
      summary: what it does, in a sentence.
      training: what it computes in training, empty if it has no part in it.
      inference: what it computes in inference, likewise.
      papers: the papers that it is from.
      classes: its Flax modules, as `linen.BatchNorm`.
    """

    functions: tuple[str, ...]
    summary: str
    training: str
    inference: str
    papers: tuple[Paper, ...]
    classes: tuple[str, ...]


class Family(NamedTuple):
    """The layers of a file, which is named from the package on."""

    title: str
    contents: str
    file: str
    layers: tuple[Layer, ...]

    @property
    def anchor(self) -> str:
        """What a link to the family's heading on a Markdown page ends with, as GitHub makes it."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


def families() -> tuple[Family, ...]:
    """Returns all families, by folder and file."""
    classes = {package: _classes(package) for package in _FLAX}
    return tuple(_family(name, classes) for folder in FOLDERS for name in _modules(folder))


def markdown() -> str:
    """Returns the page FUNCTIONS.md."""
    found = families()
    parts = [_INTRODUCTION, "\n".join(f"- [{family.title}](#{family.anchor}): {_names(family)}" for family in found)]
    for family in found:
        about = f"{family.contents[:1].upper()}{family.contents[1:]}. " if family.contents else ""
        head = ("function", "in training", "in inference", "paper", "classes")
        lines = (head, ("---",) * len(head), *map(_cells, family.layers))
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts += [f"## {family.title}", f"{about}[{family.file}]({family.file})", table]
    return "\n\n".join(parts) + "\n"


def class_of(function: str, names: Iterable[str]) -> str | None:
    """Returns which of these classes is a function's: the one that differs in underscores and capitals alone.

    >>> class_of("rms_norm", ["LayerNorm", "RMSNorm"])
    'RMSNorm'
    """
    return next((name for name in names if name.lower() == function.replace("_", "")), None)


def _modules(folder: str) -> Iterator[str]:
    """Yields the names of the modules of a folder that define public functions."""
    functions = [value for value in map(vars(jaxnorm).get, jaxnorm.__all__) if inspect.isfunction(value)]
    yield from sorted({f.__module__ for f in functions if f.__module__.startswith(f"{jaxnorm.__name__}.{folder}.")})


def _family(name: str, classes: dict[str, tuple[str, ...]]) -> Family:
    module = importlib.import_module(name)
    title, _, contents = (inspect.getdoc(module) or "").partition("\n")[0].removesuffix(".").partition(": ")
    public = [f for f, value in vars(module).items() if f in jaxnorm.__all__ and getattr(value, "__module__", "") == name]
    layers = tuple(_layer(f, public, classes) for f in public if _is_layer(f))
    return Family(title, contents, "/".join(name.split(".")[1:]) + ".py", layers)


def _is_layer(function: str) -> bool:
    """Whether a public function is a layer, as its docstring tells: it has a formula for a mode."""
    value = getattr(jaxnorm, function)
    paragraphs = (" ".join(paragraph.split()) for paragraph in (inspect.getdoc(value) or "").split("\n\n"))
    return inspect.isfunction(value) and any(map(_MODE.match, paragraphs))


def _layer(function: str, public: list[str], classes: dict[str, tuple[str, ...]]) -> Layer:
    text = inspect.getdoc(getattr(jaxnorm, function)) or ""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    modes = {"Training": "", "Inference": ""}
    for paragraph in filter(_MODE.match, paragraphs):
        _, *parts = _MODE.split(paragraph)
        for mode, condition, said in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            said = said.strip().removesuffix(".")
            modes[mode.partition(" ")[0]] = f"{said} ({condition.strip()})" if condition else said
            if mode == "Training and inference":
                modes["Inference"] = "the same"
    references = next((p.removeprefix("References: ") for p in paragraphs if p.startswith("References: ")), "")
    return Layer(
        functions=(function, *_helpers_of(function, public)),
        summary=re.split(r"(?<=\.)\s", paragraphs[0])[0],
        training=modes["Training"],
        inference=modes["Inference"],
        papers=tuple(Paper(*(part.strip(" ;") for part in found)) for found in _PAPER.findall(references)),
        classes=tuple(f"{package}.{found}" for package in _FLAX if (found := class_of(function, classes[package]))),
    )


def _helpers_of(function: str, public: list[str]) -> tuple[str, ...]:
    """Returns the public functions that make a layer's parameters and state, or another argument, whose docstring names it."""
    made = (f"init_{function}", f"init_{function}_from_data")

    def is_helper(other: str) -> bool:
        first = (inspect.getdoc(getattr(jaxnorm, other)) or "").partition("\n")[0]
        return inspect.isfunction(getattr(jaxnorm, other)) and not _is_layer(other) and f"`{function}`" in first

    return tuple(other for other in public if other in made or (not other.startswith("init_") and is_helper(other)))


def _classes(package: str) -> tuple[str, ...]:
    """Returns the names that a package of modules exports, without importing Flax for it."""
    tree = ast.parse((Path(__file__).parent / package / "__init__.py").read_text(encoding="utf-8"))
    return next(
        tuple(ast.literal_eval(node.value))
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )


def _names(family: Family) -> str:
    return ", ".join(f"`{layer.functions[0]}`" for layer in family.layers)


def _cells(layer: Layer) -> tuple[str, ...]:
    papers = (f"{paper.first_authors}, [{paper.title}]({paper.url}), {paper.where}" for paper in layer.papers)
    functions, classes = (", ".join(f"`{name}`" for name in names) for names in (layer.functions, layer.classes))
    cells = (functions, layer.training, layer.inference, "; ".join(papers), classes)
    return tuple((cell or _NONE).replace("|", r"\|") for cell in cells)
