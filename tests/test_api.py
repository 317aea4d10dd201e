"""The public surface: what every function must have, so that a new one cannot be half done."""

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cases import CASES

import jaxnorm
from jaxnorm import _functions as functions

PACKAGE = Path(jaxnorm.__file__).parent
README = PACKAGE.parent / "README.md"
FAMILIES = functions.families()
DESCRIBED = {layer.functions[0]: layer for family in FAMILIES for layer in family.layers}
NAMES = [name for name in jaxnorm.__all__ if inspect.isfunction(getattr(jaxnorm, name))]
TOOLS = (  # which make an argument of a layer, or tell of one
    "drop_connect_moments",
    "dropout_mask",
    "example_keys",
    "padding_mask",
    "reference_moments",
)
OF_INTEGERS = ("word_dropout",)  # whose x has no gradient; it has tests of its own
LAYERS = [name for name in NAMES if not name.startswith("init_") and name not in TOOLS + OF_INTEGERS]
CONTAINERS = [name for name in jaxnorm.__all__ if name not in NAMES]
AMOUNTS = ("rate", "beta", "std")
ORDER = ("key", "mask", "params", "state", "kernel", "preactivation", "x", *AMOUNTS)
INPUTS = ("x", "kernel", "params", "branches", "first", "table", "h_prev", "logits")  # what a function takes in the place of x
REQUIRED = ("train", "head_axis", "unknown", "window")  # by keyword, without a default
FLAX = ("linen", "nnx")
NO_CLASS = {  # functions that are no layer of a model, but what a user calls around one
    "apply_mask": "it applies a value that was drawn elsewhere",
    "adaptive_instance_norm": "it has no parameters, and takes a second array",
    "max_pool_dropout_mean": "the inference of max_pool_dropout",
    "classic_dropout": "its inference is not the identity, which Flax's `deterministic` promises",
    "mixout": "it takes the parameters that training began with",
    "modulate": "another layer gives what would be its parameters",
    "weight_standardization": "a layer applies it to its own kernel",
    "weight_scaled": "the inference of classic_dropout",
    "zoneout_mean": "the inference of zoneout, and of its class",
}

each = pytest.mark.parametrize("name", NAMES)
each_layer = pytest.mark.parametrize("name", LAYERS)


def parameters(name: str) -> list[inspect.Parameter]:
    return list(inspect.signature(getattr(jaxnorm, name), eval_str=True).parameters.values())


def annotations(name: str) -> dict[str, Any]:
    return {parameter.name: parameter.annotation for parameter in parameters(name)}


def docstring(function: Callable[..., Any]) -> str:
    return inspect.cleandoc(function.__doc__ or "")


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^(Args|Returns|Raises|References|Example):$", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def test_every_name_in_all_exists_is_sorted_and_nothing_else_is_public() -> None:
    assert len(set(jaxnorm.__all__)) == len(jaxnorm.__all__)
    assert sorted(jaxnorm.__all__) == list(jaxnorm.__all__)
    public = {name for name, value in vars(jaxnorm).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(jaxnorm.__all__)


def test_every_name_has_one_path() -> None:
    """Modules between the surface and the files have no names of their own, and no two names are one thing."""
    values = [getattr(jaxnorm, name) for name in jaxnorm.__all__]
    assert len({id(value) for value in values}) == len(values)
    for name, value in zip(jaxnorm.__all__, values, strict=True):
        assert value.__name__ == name
        assert value.__module__.startswith("jaxnorm._"), f"{name} is defined in a public module too"
    for folder in ("_norm", "_dropout"):
        package = importlib.import_module(f"jaxnorm.{folder}")
        assert not [name for name, value in vars(package).items() if not name.startswith("_") and not inspect.ismodule(value)]


@each_layer
def test_has_a_row_in_the_case_table(name: str) -> None:
    rows = [case for case in CASES if case.function is getattr(jaxnorm, name)]
    assert rows, f"add a row for {name} to tests/cases.py"
    assert all(case.name.split("-")[0] == name for case in rows)


def test_rows_of_the_case_table_are_of_public_functions_and_have_their_own_names() -> None:
    assert {case.function.__name__ for case in CASES} == set(LAYERS)
    assert len({case.name for case in CASES}) == len(CASES)


@each
def test_docstring_has_its_sections(name: str) -> None:
    text = docstring(getattr(jaxnorm, name))
    found = sections(text)
    first = text.splitlines()[0]
    assert first.endswith(".")
    assert len(first) <= 120
    assert text.splitlines()[1] == ""
    for section in ("Args", "Returns", "Raises", "References", "Example"):
        assert found.get(section, "").strip(), f"{name} lacks {section}:"
    assert "`" in found[""], f"{name} lacks its formula"
    assert "https://" in found["References"]
    assert ">>> " in found["Example"]
    assert "jaxnorm." in found["Example"]


@each
def test_docstring_names_every_argument_and_no_other(name: str) -> None:
    arguments = sections(docstring(getattr(jaxnorm, name)))["Args"]
    documented = re.findall(r"^  (\w+):", arguments, flags=re.MULTILINE)
    assert documented == [p.name for p in parameters(name)]


@each_layer
def test_arguments_come_in_the_order_of_all_layers(name: str) -> None:
    positional = [p.name for p in parameters(name) if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    anchor = next(argument for argument in INPUTS if argument in positional)
    known = [argument for argument in positional if argument in ORDER]
    assert known == sorted(known, key=ORDER.index)
    others = [argument for argument in positional if argument not in (*ORDER, anchor)]  # data beside x, as labels, or a new state
    if "kernel" in positional and "bias" in others:
        assert positional.index("bias") == positional.index("kernel") + 1
        others.remove("bias")
    assert all(positional.index(other) > positional.index(anchor) for other in others)
    assert sum(argument in AMOUNTS for argument in positional) <= 1
    if amount := [argument for argument in positional if argument in AMOUNTS]:
        assert positional[-1] == amount[0]
    assert not {"key", "params", "state", "x"} & {p.name for p in parameters(name) if p.kind is inspect.Parameter.KEYWORD_ONLY}


@each
def test_options_are_keyword_only_and_positions_have_no_defaults(name: str) -> None:
    for parameter in parameters(name):
        assert parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)  # no *args
        keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        has_default = parameter.default is not inspect.Parameter.empty
        assert keyword_only or not has_default, f"{name}: {parameter.name} has a default and a position"
        assert has_default or not keyword_only or parameter.name in REQUIRED, f"{name}: {parameter.name} lacks a default"
        assert parameter.annotation is not inspect.Parameter.empty
    assert inspect.signature(getattr(jaxnorm, name)).return_annotation is not inspect.Signature.empty


@each_layer
def test_train_is_required_wherever_it_is(name: str) -> None:
    """Pitfall 52."""
    train = [p for p in parameters(name) if p.name == "train"]
    assert all(p.default is inspect.Parameter.empty and p.kind is inspect.Parameter.KEYWORD_ONLY for p in train)
    stateful = any(p.name == "state" for p in parameters(name)) and name != "frozen_batch_norm"  # whose state never changes
    assert bool(train) == stateful


@each
def test_defaults_are_immutable_and_no_arrays(name: str) -> None:
    for parameter in parameters(name):
        assert not isinstance(parameter.default, list | dict | set | jax.Array)


@each_layer
def test_what_may_be_traced_is_an_amount_of_every_row(name: str) -> None:
    """Whether it comes by position, as a rate, or by keyword, as a momentum or a limit."""
    described = re.findall(
        r"^  (\w+):(.*\n(?:   .*\n)*)", sections(docstring(getattr(jaxnorm, name)))["Args"], flags=re.MULTILINE
    )
    traced = {argument for argument, text in described if "a traced scalar" in " ".join(text.split())}
    static = {argument for argument, text in described if "known when the function is traced" in " ".join(text.split())}
    traced |= {p.name for p in parameters(name) if p.name in AMOUNTS and p.kind is not inspect.Parameter.KEYWORD_ONLY} - static
    for case in CASES:
        if case.function is getattr(jaxnorm, name):
            assert traced <= set(case.amounts) <= set(annotations(name)), case.name


@each_layer
def test_parameters_and_state_come_from_an_init(name: str) -> None:
    of_user = ("mixout",)  # whose parameters are any tree
    held = {part: kind for part, kind in annotations(name).items() if part in ("params", "state") and name not in of_user}
    init = f"init_{name.removesuffix('_mean')}"
    if not held:
        assert init not in NAMES
        return
    assert init in NAMES
    sizes = {"key": jax.random.key(0), "kernel": jnp.ones((64, 64))}  # else the number of features
    first, *more = parameters(init)
    needed = [p for p in (first, *more) if p.default is inspect.Parameter.empty]
    made = getattr(jaxnorm, init)(*(sizes.get(p.name, 64) for p in needed))
    assert [type(part) for part in (made if type(made) is tuple else (made,))] == list(held.values())
    assert all(kind.__name__ in CONTAINERS for kind in held.values())


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_are_named_tuples_that_say_which_shapes_they_hold(name: str) -> None:
    container = getattr(jaxnorm, name)
    assert issubclass(container, tuple)
    assert container._fields
    assert re.search(r"`\[.*\]`", docstring(container))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("init_")])
def test_an_init_is_of_a_layer(name: str) -> None:
    assert name.removeprefix("init_").removesuffix("_from_data") in LAYERS


# FUNCTIONS.md


@each_layer
def test_docstring_has_what_the_tables_show(name: str) -> None:
    layer = DESCRIBED[name]
    assert layer.summary.endswith(".")
    assert re.search(r"`[^`]*=[^`]*`", layer.training + layer.inference), f"{name} lacks a formula after Training: or Inference:"
    assert layer.inference, f"{name} lacks what follows Inference: or Training and inference:"
    assert (layer.training + layer.inference).count("`") % 2 == 0
    assert layer.papers, f'{name} lacks a paper, as in Authors, "Title", where and when, https://...'
    assert len(layer.papers) == docstring(getattr(jaxnorm, name)).count("https://"), "a paper is not written as the others are"
    assert all(paper.year and not re.search(r"[^\w, .'-]", paper.authors) for paper in layer.papers)


def test_functions_are_described_once_with_their_init() -> None:
    described = [name for family in FAMILIES for layer in family.layers for name in layer.functions]
    assert sorted(described) == NAMES


def test_families_have_titles_of_their_own() -> None:
    assert all(family.title and (PACKAGE / family.file).exists() for family in FAMILIES)
    assert len({family.anchor for family in FAMILIES}) == len(FAMILIES)


def test_functions_md_is_current() -> None:
    path = PACKAGE / "FUNCTIONS.md"
    assert path.exists(), f"run {functions.COMMAND}"
    assert path.read_text(encoding="utf-8") == functions.markdown(), f"run {functions.COMMAND}"


def test_readme_has_a_line_for_every_family() -> None:
    linked = re.findall(r"jaxnorm/FUNCTIONS\.md#([^)]*)\)", README.read_text(encoding="utf-8"))
    assert linked == [family.anchor for family in FAMILIES], "README.md, Functions: a line for each family, in this order"


def test_how_a_docstring_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def layer() -> None:
        """Does one thing. And more.

        Explains it.

        Training: `y = |x|`, first. Then `z: 1`. Inference with `z`: `y = x`.

        References:
          Ba, Kiros, Hinton, "Title one: with a colon", 2016, section 3, https://arxiv.org/abs/1607.06450. It differs. Li, Bo,
          "Two", NeurIPS 2019, https://arxiv.org/abs/1.

        Example:
          None.
        """

    def same() -> None:
        """Is the same.

        Training and inference: `y = 2`.
        """

    for function in (layer, same):
        monkeypatch.setattr(jaxnorm, function.__name__, function, raising=False)
    found = functions._layer("layer", ["layer", "init_layer", "init_other"], {"linen": ("Other", "LAYER"), "nnx": ()})
    assert found == functions.Layer(
        functions=("layer", "init_layer"),
        summary="Does one thing.",
        training="`y = |x|`, first. Then `z: 1`",
        inference="`y = x` (with `z`)",
        papers=(
            functions.Paper(
                "Ba, Kiros, Hinton", "Title one: with a colon", "2016, section 3", "https://arxiv.org/abs/1607.06450"
            ),
            functions.Paper("Li, Bo", "Two", "NeurIPS 2019", "https://arxiv.org/abs/1"),
        ),
        classes=("linen.LAYER",),
    )
    assert [(paper.first_authors, paper.year) for paper in found.papers] == [("Ba et al.", "2016"), ("Li, Bo", "2019")]
    assert r"`y = \|x\|`" in functions._cells(found)[1]
    other = functions._layer("same", [], {"linen": (), "nnx": ()})
    assert (other.training, other.inference, other.papers, other.classes) == ("`y = 2`", "the same", (), ())


# Flax


@pytest.mark.parametrize("flax", FLAX)
@each_layer
def test_every_layer_has_its_flax_modules(flax: str, name: str) -> None:
    module = importlib.import_module(f"jaxnorm.{flax}")
    found = functions.class_of(name, module.__all__)
    assert (f"{flax}.{found}" in DESCRIBED[name].classes) == (found is not None)
    if name in NO_CLASS or name.endswith("_mean"):  # which is the inference of another function's
        assert found is None
        return
    assert found, f"jaxnorm.{flax} has no class for {name}"
    assert inspect.isclass(getattr(module, found))
    text = docstring(getattr(module, found))
    assert ">>> " in text
    assert len(text.splitlines()[0]) <= 120


@pytest.mark.parametrize("flax", FLAX)
def test_flax_modules_hold_no_arithmetic(flax: str) -> None:
    """Of jax.numpy they use types alone; initializers come from jax.nn or Flax."""
    allowed = {"float32", "float64", "bfloat16", "ndarray", "dtype", "ones", "zeros"}
    arithmetic = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.MatMult, ast.FloorDiv)
    paths = sorted((PACKAGE / flax).glob("*.py"))
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("jnp", "lax"):
                assert node.value.id == "jnp", f"{path.name}:{node.lineno} uses lax"
                assert node.attr in allowed, f"{path.name}:{node.lineno} uses jnp.{node.attr}"
            if isinstance(node, ast.BinOp):
                assert not isinstance(node.op, arithmetic), f"{path.name}:{node.lineno} computes"
