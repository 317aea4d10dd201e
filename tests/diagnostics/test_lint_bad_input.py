"""What a lint says of models and arguments that are wrong, and what it does not run."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import ScopeCollectionNotFound
from jax.experimental import io_callback

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.diagnostics import lint
from jaxnorm.diagnostics._lint import looking
from jaxnorm.diagnostics._lint.look import Look
from jaxnorm.diagnostics._lint.program import Model

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
PARAMS, STATS = jaxnorm.init_batch_norm(4)
NEEDED = "It looks at functions of arrays, apply(key, params, stats, x, *, train) -> (outputs, stats), and at Flax models."


def norm(key: Any, params: Any, stats: Any, x: Any, *, train: bool) -> Any:
    return jaxnorm.batch_norm(params, stats, x, train=train)


def raises(call: Any, kind: type[Exception], said: str) -> list[str]:
    """Returns our notes on the error of a call, which is one of this kind that says this."""
    with pytest.raises(kind) as raised:
        call()
    assert type(raised.value) is kind
    assert said in str(raised.value)
    return notes_of(raised.value)


def notes_of(error: Exception) -> list[str]:
    return [note for note in getattr(error, "__notes__", []) if note.startswith("The ")]


class MyError(Exception):
    """An error that only these models raise."""


# What the model raises


@pytest.mark.parametrize("fails_in_training", [True, False])
def test_the_error_of_a_function_comes_unchanged_with_what_the_lint_needs(fails_in_training):
    error = MyError("mine")

    def apply(key: Any, params: Any, stats: Any, x: Any, *, train: bool) -> Any:
        if train is fails_in_training:
            raise error
        return x, stats

    with pytest.raises(MyError) as raised:
        lint(apply, PARAMS, STATS, X)
    assert raised.value is error
    assert str(error) == "mine"
    assert notes_of(error)[0] == f"The lint traced the model with train={fails_in_training}, as jax.jit does. {NEEDED}"


def test_a_function_that_can_not_be_traced():
    def apply(key: Any, params: Any, stats: Any, x: Any, *, train: bool) -> Any:
        return (x if x.sum() > 0 else -x), stats

    notes = raises(lambda: lint(apply, PARAMS, STATS, X), jax.errors.TracerBoolConversionError, "boolean conversion")
    assert NEEDED in notes[0]


def test_a_function_without_the_argument_train():
    notes = raises(lambda: lint(lambda key, params, stats, x: (x, stats), PARAMS, STATS, X), TypeError, "argument 'train'")
    assert NEEDED in notes[0]


def test_an_input_that_does_not_fit():
    notes = raises(lambda: lint(norm, PARAMS, STATS, X[:, :3]), ValueError, "params.scale must have shape [3]")
    assert NEEDED in notes[0]


def test_a_linen_model_that_raises_is_shown_as_it_was_called():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, y: jax.Array, *, train: bool) -> jax.Array:
            raise MyError("mine")

    first, second = raises(lambda: jaxnorm.linen.lint(Net(), {}, (X, X)), MyError, "mine")
    assert first.startswith("The model was called as model(*x, train=True). A tuple x is all arguments by position; training and")
    assert second.startswith("The lint traced the model with train=True, as jax.jit does.")
    first, _ = raises(lambda: jaxnorm.linen.lint(Net(), {}, X), TypeError, "missing 1 required positional argument: 'y'")
    assert first.startswith("The model was called as model(x, train=True).")


def test_a_linen_model_without_its_statistics():
    norm = nn.BatchNorm()
    variables = {"params": {"scale": np.ones(4), "bias": np.zeros(4)}}
    notes = raises(lambda: jaxnorm.linen.lint(norm, variables, X), ScopeCollectionNotFound, 'collection "batch_stats"')
    assert notes[0].startswith("The model was called as model(x, use_running_average=False).")


def test_an_nnx_model_that_raises_is_shown_as_it_was_called():
    class Net(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            raise MyError("mine")

    first, second = raises(
        lambda: jaxnorm.nnx.lint(Net(), X, training={"mode": "a"}, inference={"mode": "b"}), TypeError, "'mode'"
    )
    assert first.startswith("The model was called as model(x, mode='a').")
    assert second.startswith("The lint traced the model with train=True, as jax.jit does.")


# What is given


@pytest.mark.parametrize(
    "change, kind, said",
    [
        (
            {"apply": {"params": 1}},
            TypeError,
            "apply must be a function apply(key, params, stats, x, *, train), got {'params': 1}",
        ),
        ({"key": 0}, TypeError, "key must be one key, as from jax.random.key or jax.random.PRNGKey, got 0"),
        ({"key": jnp.zeros(2)}, TypeError, "key must be one key"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, ValueError, "key must be one key, got an array key<fry>[3]"),
        ({"optimizer": 0.1}, TypeError, "optimizer must be an Optax optimizer, with init and update, got 0.1"),
        ({"x": {}}, ValueError, "x must hold a batch of inputs, got {}, without an array"),
        (
            {"apply": lambda *_, train: X},
            TypeError,
            "apply must return (outputs, stats), with train=True it returned float32[32, 4]",
        ),
        (
            {"apply": lambda *_, train: (X, {}, {})},
            TypeError,
            "apply must return (outputs, stats), with train=True it returned (",
        ),
    ],
)
def test_an_argument_that_is_none_is_said(change, kind, said):
    given = {"apply": norm, "params": PARAMS, "stats": STATS, "x": X} | change
    raises(lambda: lint(**given), kind, said)


@pytest.mark.parametrize("key", [None, jax.random.key(5), jax.random.PRNGKey(5)], ids=["none", "typed", "raw"])
def test_the_model_is_given_the_key_as_it_is(key, monkeypatch):
    monkeypatch.setattr(looking, "RULES", [])
    given = []

    def apply(key: Any, params: Any, stats: Any, x: Any, *, train: bool) -> Any:
        given.append(key)
        return x + jax.random.normal(key, x.shape), stats

    lint(apply, PARAMS, STATS, X, key=key)
    wanted = jax.random.key(0) if key is None else key
    assert {(one.shape, one.dtype) for one in given} == {(wanted.shape, wanted.dtype)}


def test_a_key_that_is_used_twice_is_no_error_of_the_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            key = self.make_rng("noise")
            return x + jax.random.normal(key, x.shape) + jax.random.uniform(key, x.shape)

    assert jaxnorm.linen.lint(Net(), {}, X).noises == 2


def test_a_model_without_norm_or_noise_has_nothing_to_look_at():
    report = lint(lambda key, params, stats, x, *, train: (x @ params, stats), jnp.ones((4, 2)), (), X)
    assert (report.findings, report.norms, report.noises) == ((), 0, 0)
    assert str(report) == "Nothing was found.\nNo norm and no noise was met: there is little to look at."


@pytest.mark.slow
def test_numbers_that_are_not_finite_are_said_first():
    def apply(key: Any, params: Any, stats: Any, x: Any, *, train: bool) -> Any:
        y, stats = norm(key, params, stats, jax.random.normal(jax.random.key(0), x.shape) * x if train else x, train=train)
        return jnp.log(y), stats

    rules = [one.rule for one in lint(apply, PARAMS, STATS, X).at_least("error")]
    assert rules == ["not-finite", "key-constant"]


# What calls the host


class Calls:
    """A model that calls the host in all ways, wherever it can, and counts."""

    def __init__(self) -> None:
        self.effects = self.results = 0

    def effect(self, value: Any) -> Any:
        self.effects += 1
        return value

    def result(self, value: Any) -> Any:
        self.results += 1
        return value

    def there(self, x: jax.Array) -> jax.Array:
        like = jax.ShapeDtypeStruct(x.shape, x.dtype)
        jax.debug.print("{x}", x=self.effects)
        jax.debug.callback(self.effect, x)
        io_callback(lambda value: self.effect(value) and None, None, x, ordered=True)
        x = x + 1 + io_callback(self.effect, like, x)
        return jax.pure_callback(self.result, like, x, vmap_method="sequential")

    def apply(self, key: Any, params: Any, stats: Any, x: Any, *, train: bool) -> Any:
        x = jax.checkpoint(jax.jit(self.there))(x)
        x, _ = jax.lax.scan(lambda x, _: (self.there(x), None), x, None, 2)
        x = jax.lax.cond(x[0, 0] > 0, self.there, lambda x: x, x)
        x = jax.lax.while_loop(lambda x: x[0, 0] < X[0, 0] + 5, self.there, x)
        return norm(key, params, stats, x, train=train)


def test_calls_of_the_host_are_not_run_but_for_results_and_that_is_said():
    calls = Calls()
    report = lint(calls.apply, PARAMS, STATS, X)
    assert report.said == (
        "Calls of the host were not run, and what they give was taken as 0: debug_print, debug_callback, io_callback.",
    )
    assert report.unknown == ("pure_callback",)
    look = Look.at(Model(calls.apply, PARAMS, STATS, X, jax.random.key(0)))
    ran = look.training.run()
    jax.effects_barrier()
    assert calls.effects == 0
    assert calls.results > 0
    np.testing.assert_allclose(ran.stats.mean, 0.01 * (X.mean(0) + 5), rtol=1e-5)  # with momentum 0.99


def test_a_model_that_calls_nothing_has_nothing_said_of_it():
    assert lint(norm, PARAMS, STATS, X).said == ()


def test_what_comes_after_the_unknown_is_a_note_at_most() -> None:
    def through(x: Any) -> Any:
        return jax.pure_callback(lambda x: np.asarray(x), jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")

    def short(key: Any, params: Any, stats: Any, x: Any, *, train: bool, asks: bool) -> Any:
        return jaxnorm.batch_norm(params, stats, through(x) if asks else x, train=train, momentum=0.1)

    for asks, severity in ((False, "warning"), (True, "note")):
        report = lint(partial(short, asks=asks), PARAMS, STATS, X)
        (finding,) = [one for one in report.findings if one.rule == "averages-too-short"]
        assert finding.severity == severity
        assert ("less sure" in finding.why) == asks
