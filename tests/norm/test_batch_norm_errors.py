"""Bad input of batch_norm and init_batch_norm: an error that names the argument and what was given."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SHAPE, data

import jaxnorm
from jaxnorm import AffineParams, RunningStats, batch_norm, init_batch_norm

PARAMS, STATE = init_batch_norm(3)


def call(**given: Any) -> Any:
    arguments = {"params": PARAMS, "state": STATE, "x": data(), "train": True, **given}
    return batch_norm(**arguments)


def stats(mean: Any = None, var: Any = None) -> RunningStats:
    return RunningStats(STATE.mean if mean is None else mean, STATE.var if var is None else var)


BAD = {
    # number or type of an amount
    "momentum -0.1": ({"momentum": -0.1}, ValueError, "momentum", "-0.1"),
    "momentum 1.5": ({"momentum": 1.5}, ValueError, "momentum", "1.5"),
    "momentum nan": ({"momentum": np.nan}, ValueError, "momentum", "nan"),
    "momentum array": ({"momentum": jnp.float32(2.5)}, ValueError, "momentum", "2.5"),
    "momentum str": ({"momentum": "0.9"}, TypeError, "momentum", "'0.9'"),
    "momentum None": ({"momentum": None}, TypeError, "momentum", "None"),
    "momentum bool": ({"momentum": True}, TypeError, "momentum", "True"),
    "momentum [1]": ({"momentum": jnp.full(1, 0.5)}, ValueError, "momentum", "[1]"),
    "momentum [3, 1]": ({"momentum": jnp.full((3, 1), 0.5)}, ValueError, "momentum", "[3, 1]"),
    "momentum [5]": ({"momentum": jnp.full(5, 0.5)}, ValueError, "momentum", "[5]"),
    "epsilon -1e-3": ({"epsilon": -1e-3}, ValueError, "epsilon", "-0.001"),
    "epsilon nan": ({"epsilon": np.nan}, ValueError, "epsilon", "nan"),
    "epsilon inf": ({"epsilon": np.inf}, ValueError, "epsilon", "inf"),
    "epsilon complex": ({"epsilon": 1j}, TypeError, "epsilon", "1j"),
    "epsilon [5]": ({"epsilon": jnp.full(5, 0.5)}, ValueError, "epsilon", "[5]"),
    # train
    "train None": ({"train": None}, TypeError, "train", "None"),
    "train 1": ({"train": 1}, TypeError, "train", "1"),
    "train [1]": ({"train": jnp.array([True])}, TypeError, "train", "[1]"),
    # axes
    "channel_axis 4": ({"channel_axis": 4}, ValueError, "channel_axis", "4"),
    "channel_axis -5": ({"channel_axis": -5}, ValueError, "channel_axis", "-5"),
    "channel_axis twice": ({"channel_axis": (3, 3)}, ValueError, "channel_axis", "(3, 3)"),
    "channel_axis twice from both ends": ({"channel_axis": (3, -1)}, ValueError, "channel_axis", "(3, -1)"),
    "channel_axis 1.0": ({"channel_axis": 1.0}, TypeError, "channel_axis", "1.0"),
    "channel_axis bool": ({"channel_axis": True}, TypeError, "channel_axis", "True"),
    "channel_axis None": ({"channel_axis": None}, TypeError, "channel_axis", "None"),
    "channel_axis of another size": ({"channel_axis": 1}, ValueError, "params.scale", "[3]"),
    # where
    "where of another rank": ({"where": jnp.ones(3, bool)}, ValueError, "where", "[3]"),
    "where of another shape": ({"where": jnp.ones((8, 2, 4, 2), bool)}, ValueError, "where", "[8, 2, 4, 2]"),
    "where of floats": ({"where": jnp.ones(SHAPE)}, TypeError, "where", "float32"),
    "where of a list": ({"where": [True]}, TypeError, "where", "[True]"),
    # names of axes
    "axis_name": ({"axis_name": "nobody"}, ValueError, "axis_name", "'nobody'"),
    "axis_names": ({"axis_name": ("nobody", "else")}, ValueError, "axis_name", "'nobody'"),
    "axis_name 3": ({"axis_name": 3}, (TypeError, ValueError), "axis_name", "3"),
    "groups without a name": ({"axis_index_groups": [[0, 1]]}, ValueError, "axis_index_groups", "[[0, 1]]"),
    # params and state
    "state a tuple": ({"state": (1, 2)}, TypeError, "state", "(1, 2)"),
    "params a dict": ({"params": {"scale": 1}}, TypeError, "params", "{'scale': 1}"),
    "params None": ({"params": None}, TypeError, "params", "None"),
    "state bfloat16": ({"state": stats(jnp.zeros(3, jnp.bfloat16))}, TypeError, "state.mean", "bfloat16"),
    "state float16": ({"state": stats(None, jnp.ones(3, jnp.float16))}, TypeError, "state.var", "float16"),
    "state int": ({"state": stats(jnp.zeros(3, jnp.int32))}, TypeError, "state.mean", "int32"),
    "state None": ({"state": RunningStats(None, STATE.var)}, TypeError, "state.mean", "None"),
    "state real, x complex": ({"x": data(dtype=jnp.complex64)}, TypeError, "state.mean", "float32"),
    "state complex, x real": ({"state": stats(jnp.zeros(3, jnp.complex64))}, TypeError, "state.mean", "complex64"),
    "variance complex": ({"state": stats(None, jnp.ones(3, jnp.complex64))}, TypeError, "state.var", "complex64"),
    "scale int": ({"params": AffineParams(jnp.ones(3, jnp.int32), None)}, TypeError, "params.scale", "int32"),
    "scale complex": ({"params": AffineParams(jnp.ones(3, jnp.complex64), None)}, TypeError, "params.scale", "complex64"),
    "bias a list": ({"params": AffineParams(None, [1.0, 2.0, 3.0])}, TypeError, "params.bias", "[1.0, 2.0, 3.0]"),
    # x
    "x int": ({"x": jnp.ones(SHAPE, jnp.int32)}, TypeError, "x", "int32"),
    "x bool": ({"x": jnp.ones(SHAPE, bool)}, TypeError, "x", "bool"),
    "x a list": ({"x": [[1.0, 2.0, 3.0]]}, TypeError, "x", "[[1.0, 2.0, 3.0]]"),
    "x None": ({"x": None}, TypeError, "x", "None"),
    "x a number": ({"x": 3.5}, TypeError, "x", "3.5"),
    "x without axes": ({"x": jnp.float32(1)}, ValueError, "channel_axis", "-1"),
}
for _n in (0, 1, 2, 4):
    for _part in ("mean", "var"):
        _bad = stats(**{_part: jnp.ones(_n)})
        BAD[f"state.{_part} of length {_n}"] = ({"state": _bad}, ValueError, f"state.{_part}", f"[{_n}]")
    BAD[f"scale of length {_n}"] = ({"params": AffineParams(jnp.ones(_n), None)}, ValueError, "params.scale", f"[{_n}]")
    BAD[f"bias of length {_n}"] = ({"params": AffineParams(None, jnp.ones(_n))}, ValueError, "params.bias", f"[{_n}]")
BAD["state.mean a scalar"] = ({"state": stats(jnp.float32(3))}, ValueError, "state.mean", "[]")
BAD["state.var [1, 3]"] = ({"state": stats(None, jnp.ones((1, 3)))}, ValueError, "state.var", "[1, 3]")


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    """Pitfalls 20, 33, 45, 55 and 75."""
    given, error, argument, value = BAD[name]
    with pytest.raises(error) as raised:
        call(**given)
    assert re.search(rf"\b{re.escape(argument)}\b", str(raised.value)), raised.value
    assert value in str(raised.value)
    y, _ = call()  # and nothing is broken by it
    assert jnp.isfinite(y).all()


@pytest.mark.parametrize("name", ["x int", "state.mean of length 1", "where of another rank", "momentum 1.5", "train None"])
def test_bad_input_is_named_under_jit_too(name: str) -> None:
    given, error, argument, _ = BAD[name]
    with pytest.raises(error, match=argument):
        jax.jit(lambda x: call(**{"x": x, **given}))(data())


def test_traced_arguments_of_a_wrong_shape_are_named() -> None:
    for name in ("momentum", "epsilon"):
        with pytest.raises(ValueError, match=name):
            jax.jit(lambda amount, name=name: call(**{name: amount}))(jnp.full((3, 1), 0.5))
    with pytest.raises(TypeError, match="train"):
        jax.jit(lambda train: call(train=train))(jnp.float32(1))


def test_train_cannot_be_left_out() -> None:
    """Pitfall 52."""
    with pytest.raises(TypeError, match="train"):
        batch_norm(PARAMS, STATE, data())


@pytest.mark.parametrize("groups", [[[0]], [[0, 1], [2, 2]], [[0, 1], [2, 4]], [[0, 1, 2, 3, 4]], [], 3, [0, 1, 2, 3]], ids=str)
def test_groups_that_do_not_fit_the_axis_are_named(groups: Any) -> None:
    def part(x: jax.Array) -> jax.Array:
        return call(x=x, axis_name="lanes", axis_index_groups=groups)[0]

    with pytest.raises((TypeError, ValueError), match="axis_index_groups"):
        jax.vmap(part, axis_name="lanes")(data((4, 2, 3, 3)))


INIT = {
    "0": ({"num_features": 0}, ValueError, "num_features", "0"),
    "-1": ({"num_features": -1}, ValueError, "num_features", "-1"),
    "1.0": ({"num_features": 1.0}, TypeError, "num_features", "1.0"),
    "True": ({"num_features": True}, TypeError, "num_features", "True"),
    "None": ({"num_features": None}, TypeError, "num_features", "None"),
    "str": ({"num_features": "3"}, TypeError, "num_features", "'3'"),
    "dtype bfloat16": ({"dtype": jnp.bfloat16}, TypeError, "dtype", "bfloat16"),
    "dtype int": ({"dtype": jnp.int32}, TypeError, "dtype", "int32"),
    "dtype unknown": ({"dtype": "floaty"}, TypeError, "dtype", "floaty"),
    "dtype None": ({"dtype": None}, TypeError, "dtype", "None"),
    "param_dtype int": ({"param_dtype": jnp.int32}, TypeError, "param_dtype", "int32"),
    "param_dtype unknown": ({"param_dtype": "floaty"}, TypeError, "param_dtype", "floaty"),
}


@pytest.mark.parametrize("name", INIT)
def test_bad_input_of_init_is_named(name: str) -> None:
    given, error, argument, value = INIT[name]
    with pytest.raises(error) as raised:
        jaxnorm.init_batch_norm(**{"num_features": 3, **given})
    assert argument in str(raised.value)
    assert value in str(raised.value)
