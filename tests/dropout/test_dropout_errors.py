"""Bad input of dropout: an error that names the argument and what was given."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SHAPE, data

import jaxnorm


def head_dropout(key: Any, x: Any, rate: Any, **options: Any) -> jax.Array:
    return jaxnorm.head_dropout(key, x, rate, head_axis=-2, **options)


DECIDING = (
    jaxnorm.dropout,
    jaxnorm.classic_dropout,
    jaxnorm.alpha_dropout,
    jaxnorm.spatial_dropout,
    jaxnorm.locked_dropout,
    jaxnorm.drop_path,
    head_dropout,
)
FUNCTIONS = (*DECIDING, jaxnorm.gaussian_dropout, jaxnorm.uniform_dropout, jaxnorm.weight_scaled)
ONLY_BELOW_ONE = (jaxnorm.gaussian_dropout, jaxnorm.alpha_dropout)
WITH_DIMS = (*DECIDING[:3], jaxnorm.gaussian_dropout, jaxnorm.uniform_dropout, jaxnorm.gaussian_noise)
each = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
random = pytest.mark.parametrize("function", [*FUNCTIONS[:-1], jaxnorm.gaussian_noise], ids=lambda function: function.__name__)
elementwise = pytest.mark.parametrize("function", DECIDING[:2], ids=lambda function: function.__name__)
bernoulli = pytest.mark.parametrize("function", DECIDING, ids=lambda function: function.__name__)

X = {
    "x int": (jnp.ones(SHAPE, jnp.int32), "int32"),
    "x bool": (jnp.ones(SHAPE, bool), "bool"),
    "x complex": (data(dtype=jnp.complex64), "complex64"),
    "x a list": ([[1.0, 2.0]], "[[1.0, 2.0]]"),
    "x None": (None, "None"),
    "x a number": (3.5, "3.5"),
}
AMOUNTS = {
    "-0.1": (-0.1, ValueError, "-0.1"),
    "-1e-9": (np.float64(-1e-9), ValueError, "-1e-09"),
    "1.5": (1.5, ValueError, "1.5"),
    "array 1.5": (jnp.float32(1.5), ValueError, "1.5"),
    "nan": (float("nan"), ValueError, "nan"),
    "inf": (float("inf"), ValueError, "inf"),
    "str": ("0.5", TypeError, "'0.5'"),
    "None": (None, TypeError, "None"),
    "bool": (True, TypeError, "True"),
    "NumPy's bool": (np.True_, TypeError, "True"),
    "complex": (1j, TypeError, "1j"),
    "list": ([0.5], TypeError, "[0.5]"),
    "of another rank": (jnp.full(3, 0.5), ValueError, "[3]"),
    "of another shape": (jnp.full((8, 2, 4, 2), 0.5), ValueError, "[8, 2, 4, 2]"),
    "one of three": (jnp.float32([0.5, 1.5, 0.1]).reshape(1, 1, 1, 3), ValueError, "1.5"),
}
KEYS = {
    "None": (None, "None"),
    "int": (0, "0"),
    "str": ("key", "'key'"),
    "tuple": ((0, 1), "(0, 1)"),
    "floats": (jnp.zeros(2), "float32"),
    "ints": (jnp.zeros(2, jnp.int32), "int32"),
    "one word": (jnp.uint32(7), "7"),
    "three words": (jnp.zeros(3, jnp.uint32), "[3]"),
    "no words": (jnp.zeros(0, jnp.uint32), "[0]"),
    "legacy keys": (jnp.zeros((4, 2), jnp.uint32), "[4, 2]"),
    "typed keys": (jax.random.split(jax.random.key(0), 3), "[3]"),
    "one typed key in an array": (jax.random.split(jax.random.key(0), 1), "[1]"),
}
DIMS = {
    "4": (4, ValueError, "4"),
    "-5": ((-5,), ValueError, "-5"),
    "twice": ((1, 1), ValueError, "(1, 1)"),
    "twice from both ends": ((1, -3), ValueError, "(1, -3)"),
    "float": (1.0, TypeError, "1.0"),
    "floats": ((1.0,), TypeError, "1.0"),
    "None": (None, TypeError, "None"),
    "str": ("a", TypeError, "'a'"),
    "bool": (True, TypeError, "True"),
}


def amount_name(function: Callable[..., Any]) -> str:
    return next(name for name in inspect.signature(function).parameters if name in ("rate", "beta", "std"))


def call(function: Callable[..., Any], **given: Any) -> jax.Array:
    arguments = {"x": data(), amount_name(function): 0.3}
    if "key" in inspect.signature(function).parameters:
        arguments["key"] = jax.random.key(0)
    return function(**{**arguments, **given})


def raises(function: Callable[..., Any], error: Any, argument: str, value: str, **given: Any) -> None:
    with pytest.raises(error) as raised:
        call(function, **given)
    assert re.search(rf"\b{argument}\b", str(raised.value)), raised.value
    assert value in str(raised.value)
    assert jnp.isfinite(call(function)).all()  # nothing is broken by it


@each
@pytest.mark.parametrize("name", X)
def test_bad_x_is_named(function: Callable[..., Any], name: str) -> None:
    x, value = X[name]
    raises(function, TypeError, "x", value, x=x)


@each
@pytest.mark.parametrize("name", AMOUNTS)
def test_bad_amounts_are_named(function: Callable[..., Any], name: str) -> None:
    amount, error, value = AMOUNTS[name]
    raises(function, error, amount_name(function), value, **{amount_name(function): amount})


@pytest.mark.parametrize("function", ONLY_BELOW_ONE, ids=lambda function: function.__name__)
@pytest.mark.parametrize("one", [1, 1.0, np.float32(1), jnp.float32(1)], ids=["int", "float", "NumPy", "jax"])
def test_noise_of_finite_variance_has_no_limit_at_rate_one(function: Callable[..., Any], one: Any) -> None:
    """Pitfall 78: of Gaussian and alpha dropout."""
    raises(function, ValueError, "rate", "1", rate=one)


@pytest.mark.parametrize("name", ["-0.1", "-1e-9", "nan", "inf", "str", "None", "bool", "complex", "list", "of another shape"])
def test_bad_deviations_of_additive_noise_are_named(name: str) -> None:
    std, error, value = AMOUNTS[name]
    raises(jaxnorm.gaussian_noise, error, "std", value, std=std)


@random
@pytest.mark.parametrize("name", KEYS)
def test_bad_keys_are_named(function: Callable[..., Any], name: str) -> None:
    key, value = KEYS[name]
    raises(function, (TypeError, ValueError), "key", value, key=key)


@pytest.mark.parametrize("function", WITH_DIMS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("name", DIMS)
def test_bad_broadcast_dims_are_named(function: Callable[..., Any], name: str) -> None:
    dims, error, value = DIMS[name]
    raises(function, error, "broadcast_dims", value, broadcast_dims=dims)


@bernoulli
@pytest.mark.parametrize("bits", [0, 7, 64, -16, None, "16", True, 16.0], ids=repr)
def test_other_numbers_of_bits_are_refused(function: Callable[..., Any], bits: Any) -> None:
    error = ValueError if type(bits) is int else TypeError
    raises(function, error, "bits", f"bits must be 8, 16 or 32, got {bits!r}", bits=bits)


@pytest.mark.parametrize("function", [jaxnorm.gaussian_dropout, jaxnorm.uniform_dropout, jaxnorm.gaussian_noise])
@pytest.mark.parametrize("bits", [0, 8, 64, None, "16", True, 16.0], ids=repr)
def test_other_numbers_of_bits_for_noise_are_refused(function: Callable[..., Any], bits: Any) -> None:
    error = ValueError if type(bits) is int else TypeError
    raises(function, error, "bits", f"bits must be 16 or 32, got {bits!r}", bits=bits)


RATES = {
    "0.01": (0.01, "0.01"),
    "0.99": (0.99, "0.99"),
    "of jax": (jnp.float32(0.01), "0.01"),
    "tiny": (1e-9, "1e-09"),
    "one of three": (np.array([0.5, 0.25, 0.998]).reshape(1, 1, 1, 3), "0.998"),
}


@elementwise
@pytest.mark.parametrize("name", RATES)
def test_rates_that_8_bits_do_not_hold_are_refused(function: Callable[..., Any], name: str) -> None:
    rate, value = RATES[name]
    raises(function, ValueError, "rate", f"bits must be 16 or 32 for a rate of {value}, ", rate=rate, bits=8)
    assert jnp.isfinite(call(function, rate=rate, bits=16)).all()
    assert jnp.isfinite(jax.jit(lambda rate: call(function, rate=rate, bits=8))(rate)).all()  # a traced rate is not known


@elementwise
@pytest.mark.parametrize("rate", [0, 1, 0.1, 0.05, 0.95, 1 / 3, 2.0**-8, 1 - 2.0**-8, "channels"], ids=str)
def test_rates_that_8_bits_hold_to_five_percent_are_taken(function: Callable[..., Any], rate: Any) -> None:
    given = np.array([0.0, 0.1, 1.0]).reshape(1, 1, 1, 3) if isinstance(rate, str) else rate
    assert jnp.isfinite(call(function, rate=given, bits=8)).all()


@bernoulli
def test_a_bad_rate_is_named_before_the_bits_that_do_not_hold_it(function: Callable[..., Any]) -> None:
    for bits in (8, 16, 32):
        raises(function, ValueError, "rate", "1.001", rate=1.001, bits=bits)
        raises(function, TypeError, "rate", "None", rate=None, bits=bits)


@each
def test_a_missing_argument_is_a_type_error(function: Callable[..., Any]) -> None:
    """Pitfall 64: a key too."""
    with pytest.raises(TypeError):
        function(data())


def test_an_amount_must_fit_the_shared_draw() -> None:
    """With channels dropped whole, a rate for each element makes no sense."""
    rates = jnp.full(SHAPE, 0.5)
    raises(jaxnorm.dropout, ValueError, "rate", "[8, 2, 4, 3]", rate=rates, broadcast_dims=(1, 2))


@pytest.mark.parametrize(
    "function, options",
    [(function, {}) for function in FUNCTIONS]
    + [(function, {"bits": 8}) for function in DECIDING]
    + [(function, {"bits": 32}) for function in FUNCTIONS[:-1]],
    ids=lambda part: getattr(part, "__name__", str(part)),
)
def test_a_traced_amount_outside_its_range_gives_nan_everywhere(function: Callable[..., Any], options: dict[str, int]) -> None:
    run = jax.jit(lambda amount: call(function, **{amount_name(function): amount}, **options))
    highest = 1.0 if function in ONLY_BELOW_ONE else 1.5
    for amount in (-0.1, highest, np.nan, np.inf, -np.inf):
        assert jnp.isnan(run(amount)).all(), amount
    assert jnp.isfinite(run(0.3)).all()
    assert jnp.isfinite(run(0.0)).all()


@each
def test_traced_bad_input_is_named(function: Callable[..., Any]) -> None:
    for amount in (jnp.full(3, 0.5), jnp.full((3, 1), 0.5)):
        with pytest.raises(ValueError, match=amount_name(function)):
            jax.jit(lambda amount: call(function, **{amount_name(function): amount}))(amount)
    with pytest.raises(TypeError, match="x must be"):
        jax.jit(lambda x: call(function, x=x))(jnp.ones(SHAPE, jnp.int32))
