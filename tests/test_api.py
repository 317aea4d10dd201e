"""The public surface: what every function must have, so that a new one cannot be half done."""

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from cases import CASES

import jaxnorm

PACKAGE = Path(jaxnorm.__file__).parent
README = PACKAGE.parent / "README.md"
NAMES = [name for name in jaxnorm.__all__ if inspect.isfunction(getattr(jaxnorm, name))]
LAYERS = [name for name in NAMES if not name.startswith("init_")]
AMOUNTS = ("rate", "beta")
ORDER = ("key", "params", "state", "x", *AMOUNTS)
FLAX = ("linen", "nnx")
NO_CLASS = {  # functions that are no layer of a model, but what a user calls around one
    "classic_dropout": "its inference is not the identity, which Flax's `deterministic` promises",
    "weight_scaled": "the inference of classic_dropout",
}

each = pytest.mark.parametrize("name", NAMES)
each_layer = pytest.mark.parametrize("name", LAYERS)


def parameters(name: str) -> list[inspect.Parameter]:
    return list(inspect.signature(getattr(jaxnorm, name)).parameters.values())


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


@each_layer
def test_docstring_says_what_happens_in_training_and_in_inference(name: str) -> None:
    text = sections(docstring(getattr(jaxnorm, name)))[""]
    assert re.search(r"`[^`]*=[^`]*`", text), f"{name} lacks a formula"
    assert "Inference" in text or "inference" in text


@each
def test_docstring_names_every_argument_and_no_other(name: str) -> None:
    arguments = sections(docstring(getattr(jaxnorm, name)))["Args"]
    documented = re.findall(r"^  (\w+):", arguments, flags=re.MULTILINE)
    assert documented == [p.name for p in parameters(name)]


@each_layer
def test_arguments_come_in_the_order_of_all_layers(name: str) -> None:
    positional = [p.name for p in parameters(name) if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert "x" in positional
    known = [argument for argument in positional if argument in ORDER]
    assert known == sorted(known, key=ORDER.index)
    others = [argument for argument in positional if argument not in ORDER]  # data beside x, as labels
    assert all(positional.index(other) > positional.index("x") for other in others)
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
        assert has_default or not keyword_only or parameter.name == "train", f"{name}: {parameter.name} lacks a default"
        assert parameter.annotation is not inspect.Parameter.empty
    assert inspect.signature(getattr(jaxnorm, name)).return_annotation is not inspect.Signature.empty


@each_layer
def test_train_is_required_wherever_it_is(name: str) -> None:
    train = [p for p in parameters(name) if p.name == "train"]
    assert all(p.default is inspect.Parameter.empty and p.kind is inspect.Parameter.KEYWORD_ONLY for p in train)
    stateful = any(p.name == "state" for p in parameters(name))
    assert bool(train) == stateful


@each
def test_defaults_are_immutable_and_no_arrays(name: str) -> None:
    for parameter in parameters(name):
        assert not isinstance(parameter.default, list | dict | set | jax.Array)


def test_a_stateful_layer_has_its_init() -> None:
    for name in LAYERS:
        if any(p.name == "state" for p in parameters(name)):
            assert f"init_{name}" in NAMES


def table_rows() -> str:
    assert README.exists(), "README.md is missing"
    return "\n".join(line for line in README.read_text().splitlines() if line.lstrip().startswith("|"))


@each
def test_readme_has_a_row(name: str) -> None:
    assert re.search(rf"`(jaxnorm\.)?{name}\b[^`]*`", table_rows()), f"the README's table of functions lacks `{name}`"


# Flax


def class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


@pytest.mark.parametrize("flax", FLAX)
@each_layer
def test_every_layer_has_its_flax_modules(flax: str, name: str) -> None:
    module = importlib.import_module(f"jaxnorm.{flax}")
    if name in NO_CLASS:
        assert not hasattr(module, class_name(name))
        return
    found = getattr(module, class_name(name), None)
    assert inspect.isclass(found), f"jaxnorm.{flax}.{class_name(name)} is missing"
    assert class_name(name) in module.__all__
    text = docstring(found)
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
