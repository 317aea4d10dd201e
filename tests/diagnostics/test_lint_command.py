"""The command `lint`: what it looks at, what it prints, its exit status, and what it says of a wrong command line."""

import json
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm.__main__ import main
from jaxnorm._lint_command import made_up
from jaxnorm.diagnostics._lint import looking, rules
from jaxnorm.diagnostics._lint.look import Look
from jaxnorm.diagnostics._lint.program import Model
from jaxnorm.diagnostics._lint.report import Finding, Severity, Where
from jaxnorm.diagnostics._lint.rules import Rule
from jaxnorm.diagnostics._lint.step_rules import STEP_RULES

pytestmark = pytest.mark.jax_defaults

MODELS = """
import flax.linen as nn
import jaxnorm
import optax
from flax import nnx

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.BatchNorm(use_running_average=not train)(x)

class Sum(nn.Module):
    def __call__(self, x, y, z):
        return x + y * z

class Broken(nn.Module):
    def __call__(self, x):
        return x.reshape(7)

def nnx_net():
    return nnx.Sequential(nnx.Embed(2, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))

def bare():
    def apply(key, params, stats, x, *, train):
        return jaxnorm.batch_norm(params, stats, x, train=train)
    return apply, *jaxnorm.init_batch_norm(4)

def adamw():
    return optax.adamw(1e-3)

number = 3
"""


class Seen(NamedTuple):
    """What the only rule is given, and the severity of what it finds, if it does."""

    models: list[Model]
    severities: list[Severity]


@pytest.fixture
def seen(tmp_path, monkeypatch) -> Iterator[Seen]:
    """Writes a module of models in the folder of the process, and leaves one rule."""
    (tmp_path / "lint_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = Seen([], [])

    def always(look: Look) -> Iterator[Finding]:
        """What is seen always."""
        found.models.append(look.model)
        for severity in found.severities:
            yield Finding("always", severity, Where("layer", ""), "It is.", "mend()", {"shift": 1.5})

    monkeypatch.setattr(rules, "RULES", [Rule("always", always)])
    monkeypatch.setattr(looking, "RULES", rules.RULES)
    yield found
    sys.modules.pop("lint_models", None)


@pytest.mark.parametrize("severity, status", [(None, 0), ("note", 0), ("warning", 1), ("error", 1)])
def test_the_status_says_whether_there_is_something_worse_than_a_note(seen, capsys, severity, status):
    seen.severities.extend(filter(None, [severity]))
    assert main(["lint", "lint_models:bare", "--input", "32,4"]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (f"Found: 1 {severity}" if severity else "Nothing was found.")
    assert lines[-2:] == [
        "1 norm and 0 places with noise were looked at.",
        "x is made up: running statistics were not compared with it.",
    ]


def test_json_holds_the_report(seen, capsys):
    seen.severities.append("error")
    assert main(["lint", "lint_models:bare", "--input", "32,4", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["norms"], report["findings"][0]["figures"]) == (1, {"shift": 1.5})


@pytest.mark.parametrize(
    "arguments, library, shapes, dtype",
    [
        (["Net", "--input", "8,3,4"], "linen", (8, 3, 4), jnp.float32),
        (["Net", "--input", "8,4", "--dtype", "bfloat16"], "linen", (8, 4), jnp.bfloat16),
        (["nnx_net", "--input", "16,2", "--dtype", "int32"], "nnx", (16, 2), jnp.int32),
        (["bare", "--input", "8,4"], "", (8, 4), jnp.float32),
    ],
)
def test_models_of_each_kind_are_looked_at(seen, arguments, library, shapes, dtype):
    name, *options = arguments
    assert main(["lint", f"lint_models:{name}", *options]) == 0
    [model] = seen.models
    assert (model.library, model.x.shape, model.x.dtype) == (library, shapes, dtype)
    assert model.made_up
    assert model.optimizer is None


def test_several_inputs_are_several_arguments(seen):
    assert main(["lint", "lint_models:Sum", "--input", "8,4", "--input", "8,4", "--input", "8,1"]) == 0
    assert [x.shape for x in seen.models[0].x] == [(8, 4), (8, 4), (8, 1)]
    assert not np.array_equal(seen.models[0].x[0], seen.models[0].x[1])


def test_the_optimizer_is_looked_at(seen):
    assert main(["lint", "lint_models:bare", "--input", "8,4", "--optimizer", "lint_models:adamw"]) == 0
    assert callable(seen.models[0].optimizer.update)


def test_numbers_that_are_made_up():
    normal = np.asarray(made_up([(4096, 2)], jnp.dtype("float16")), np.float32)
    assert (normal.mean(), normal.std()) == pytest.approx((0, 1), abs=0.05)
    tokens = made_up([(64, 2)], jnp.dtype("int32"))
    assert set(np.asarray(tokens).flat) == {0, 1}


def test_rules_are_listed(seen, capsys):
    assert main(["lint", "--rules"]) == 0
    of_model, of_step = capsys.readouterr().out.split("Of a training step (lint_step)")
    assert of_model.startswith("Of a model (lint)")
    assert "always" in of_model
    assert "What is seen always." in of_model
    for rule in STEP_RULES:
        assert rule.__name__.replace("_", "-") in of_step


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "a model, PACKAGE.MODULE:FUNCTION, and its --input are required, or --rules"),
        (["lint_models:Net"], "a model, PACKAGE.MODULE:FUNCTION, and its --input are required, or --rules"),
        (["lint_models", "--input", "8,4"], "must be PACKAGE.MODULE:FUNCTION, got 'lint_models'"),
        (["lint_models:", "--input", "8,4"], "must be PACKAGE.MODULE:FUNCTION, got 'lint_models:'"),
        (["lint_models:Nix", "--input", "8,4"], "module 'lint_models' has no attribute 'Nix', for 'lint_models:Nix'"),
        (["lint_nix:Net", "--input", "8,4"], "No module named 'lint_nix', for 'lint_nix:Net'"),
        (["lint_models:number", "--input", "8,4"], "must name a function, got 'lint_models:number', which is 3"),
        (["lint_models:adamw", "--input", "8,4"], "must return a linen or nnx model, or (apply, params, stats), got Gradient"),
        (["lint_models:Net", "--input", "8,x"], "argument --input: must be sizes of at least 1, as 8,32,32,3, got '8,x'"),
        (["lint_models:Net", "--input", "8,0"], "argument --input: must be sizes of at least 1, as 8,32,32,3, got '8,0'"),
        (["lint_models:Net", "--input", "8,4", "--dtype", "str"], "must be a type of floats or integers, as int32, got 'str'"),
        (["lint_models:Net", "--input", "8,4", "--dtype", "nix"], "must be a type of floats or integers, as int32, got 'nix'"),
        (["lint_models:Net", "--input", "8,4", "--optimizer", "nix"], "--optimizer: must be PACKAGE.MODULE:FUNCTION, got 'nix'"),
    ],
)
def test_a_wrong_command_line_is_said_in_a_line(seen, capsys, arguments, said):
    with pytest.raises(SystemExit) as exit_:
        main(["lint", *arguments])
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("jaxnorm lint: ")
    assert err.count("\n") == 1
    assert said in err


def test_what_the_model_raises_comes_as_it_is(seen):
    with pytest.raises(TypeError, match="cannot reshape array") as raised:
        main(["lint", "lint_models:Broken", "--input", "8,4"])
    assert raised.value.__notes__[0].startswith("The model was called as model(x).")
