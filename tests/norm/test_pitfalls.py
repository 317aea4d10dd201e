"""Known mistakes of other libraries, by their numbers, that no other file is the place for.

Their numbers stand in the docstrings of the tests that would see such a mistake here, in every file. What cannot be made here:

- 15, of arrays of more than 2^31 elements alone: they take the memory of an accelerator.
- 45, of the conversion alone, and 73: nothing converts layers or statistics of another library.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import CASES, Arguments, Case, data
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal
from promises import finite, mesh, new_key, rows

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm import AffineParams, RunningStats, batch_norm

NORMS = tuple(case for case in CASES if case.input == "x" and not (case.is_random and not case.is_stateful))
FIRST = tuple({case.function: case for case in reversed(NORMS)}.values())
TRAINED = tuple(case for case in NORMS if case.options.get("train") and case.function is not jaxnorm.split_batch_norm)
PARAMS = AffineParams(jnp.asarray([0.5, 2, 3], jnp.float32), jnp.asarray([1, -1, 4], jnp.float32))
STATE = RunningStats(jnp.full(3, 3.0), jnp.full(3, 7.0))


def sized(case: Case, arguments: Arguments, batch: int, positions: int) -> Arguments:
    """The arguments with so many examples, of so many elements along each axis that is not of the features."""
    cuts = tuple(slice(positions if axis else batch) for axis in range(4))
    cuts = tuple(slice(None) if axis in case.feature_axes else cut for axis, cut in enumerate(cuts))
    return {name: a[cuts if a.ndim == 4 else cuts[:1]] if name in case.batched else a for name, a in arguments.items()}


def test_the_oracle_computes_in_float64_around_the_mean() -> None:
    """Pitfall 11."""
    x = np.float32([[1e4 + 0.25], [1e4 + 0.5], [1e4 + 1.25]])
    mean, var, n = oracles.moments(x, (0,))
    assert (mean.dtype, var.dtype, n) == (np.float64, np.float64, 3)
    assert_allclose(mean, 1e4 + 2 / 3, rtol=1e-15)
    assert_allclose(var, 13 / 72, rtol=1e-11)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case not in FIRST)) for case in TRAINED]
)
def test_one_element_of_every_channel_has_no_variance_to_average(case: Case) -> None:
    """Pitfalls 28 and 35: nor is `n / (n - 1)` taken of it."""
    arguments = sized(case, case.arguments(), 1, 1)
    unbiased = {"unbiased": True} if "unbiased" in case.parameters else {}
    y, state = case(new_key(), arguments, **unbiased)
    assert finite((y, state))
    old = arguments["state"]
    if isinstance(old, RunningStats):
        kept = np.asarray(state.var == old.var)
        assert not kept.all()
        assert_allclose(state.var[~kept], 0.7 * old.var[~kept], rtol=1e-5)


@pytest.mark.parametrize("batch, positions", [(0, 4), (3, 0)], ids=["examples", "positions"])
@rows(FIRST)
def test_nothing_at_all_changes_nothing(case: Case, batch: int, positions: int) -> None:
    """Pitfall 29."""
    arguments = sized(case, case.arguments(), batch, positions)
    if case.function is jaxnorm.max_pool_dropout_mean and not positions:
        with pytest.raises(ValueError, match="window must be at most the size of the map"):
            case(new_key(), arguments)
        return
    y, state = case(new_key(), arguments)
    assert np.delete(y.shape, case.resized).tolist() == np.delete(arguments["x"].shape, case.resized).tolist()
    jax.tree.map(assert_array_equal, state, arguments.get("state"))


def new(case: Case) -> tuple[Any, Any]:
    """The parameters and the state that the layer begins with, for three channels."""
    init = getattr(jaxnorm, f"init_{case.function.__name__}")
    sizes = ("num_features", "num_classes", "num_domains", "group_size")
    return init(**{name: 3 for name in sizes if name in inspect.signature(init).parameters})


@rows(tuple(case for case in FIRST if case.is_stateful))
def test_inference_with_a_new_state_does_not_blow_up(case: Case) -> None:
    """Pitfall 48: of fifty layers."""
    (params, state), rest = new(case), case.arguments()
    rest = {name: a for name, a in rest.items() if name not in ("x", "where")}
    layer = lambda _, x: case(new_key(), {**rest, "params": params, "state": state, "x": x}, train=False)[0]  # noqa: E731
    x = data()
    y = jax.jit(lambda x: jax.lax.fori_loop(0, 50, layer, x))(x)
    assert np.abs(y).max() < 10 * np.abs(x).max()


@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
@pytest.mark.parametrize("pooled", [False, True], ids=["alone", "pooled"])
@pytest.mark.parametrize("shape", [(8,), (8, 3), (8, 4, 3), (8, 4, 2, 3), (8, 2, 1, 2, 3)], ids=str)
def test_every_mode_in_every_rank_pooled_and_masked(train: bool, masked: bool, pooled: bool, shape: tuple[int, ...]) -> None:
    """Pitfall 72."""
    channels = () if len(shape) == 1 else -1
    x = data(shape)
    params, state = (jax.tree.map(lambda part: part if len(shape) > 1 else part[1], container) for container in (PARAMS, STATE))
    where = jnp.arange(8).reshape(8, *[1] * (len(shape) - 1)) % 3 != 1 if masked else None
    options = {"train": train, "channel_axis": channels, "unbiased": True}
    expected = oracles.batch_norm(params, state, x, where=where, **options)
    if pooled:
        parts = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), (x, where))
        call = lambda x, where: batch_norm(params, state, x, where=where, axis_name="d", **options)  # noqa: E731
        y, states = jax.vmap(call, axis_name="d")(*parts)
        y, found = y.reshape(shape), [jax.tree.map(lambda part, i=i: part[i], states) for i in range(4)]
    else:
        y, alone = batch_norm(params, state, x, where=where, **options)
        found = [alone]
    assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
    for one in found:
        assert_allclose(one.mean, expected.mean, rtol=1e-5)
        assert_allclose(one.var, expected.var, rtol=1e-5)


def test_statistics_of_one_device_cannot_pass_for_those_of_all() -> None:
    """Pitfall 77: where the axis is not named they drift apart, and `jax.shard_map` sees it."""
    x = data((8, 3))

    def run(axis_name: str | None, spec: P) -> RunningStats:
        part = lambda x: batch_norm(PARAMS, STATE, x, train=True, axis_name=axis_name)[1]  # noqa: E731
        return jax.jit(jax.shard_map(part, mesh=mesh(4), in_specs=P("d"), out_specs=spec))(x)

    with pytest.raises(ValueError, match="replicated"):
        run(None, P())
    assert_allclose(run("d", P()).mean, batch_norm(PARAMS, STATE, x, train=True)[1].mean, rtol=1e-6)
    drifted = run(None, P("d")).mean.reshape(4, 3)
    assert (drifted[0] != drifted[1]).all()


@pytest.mark.parametrize("package", [jaxnorm.linen, jaxnorm.nnx], ids=["linen", "nnx"])
def test_a_module_takes_a_mask_where_its_function_does(package: Any) -> None:
    """Pitfall 44: one that it would not use is an unknown argument.

    But where a batch norm is frozen: it is called as one, and a mask chooses statistics of which it takes none.
    """
    functions = {name.replace("_", ""): getattr(jaxnorm, name) for name in jaxnorm.__all__ if name.islower()}
    for name in (name for name in package.__all__ if name[0].isupper()):
        function = functions.get(name.lower())
        assert function is not None, name
        takes = "mask" in inspect.signature(getattr(package, name).__call__).parameters
        assert takes == (name == "FrozenBatchNorm" or "where" in inspect.signature(function).parameters), name
