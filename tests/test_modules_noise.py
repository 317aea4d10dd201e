"""The modules with noise in patterns, alpha dropout, additive noise and zoneout: they are their functions, in linen and nnx."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_layers import batch, close
from numpy.testing import assert_array_equal

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

PACKAGES = {"linen": jaxnorm.linen, "nnx": jaxnorm.nnx}
X = batch((4, 5, 6, 3))
IN_TABLE = {"LockedDropout": {"rate": 0.3}, "NoisyLinear": {"in_features": 3, "out_features": 2}}


class Layer(NamedTuple):
    """A class, its amount and other fields, its function, and what it gives in inference."""

    name: str
    amount: float
    fields: dict[str, Any]
    function: Callable[..., jax.Array]
    inputs: tuple[jax.Array, ...] = (X,)
    inference: Callable[..., jax.Array] = lambda x: x


LAYERS = {
    "SpatialDropout": Layer("SpatialDropout", 0.3, {}, jaxnorm.spatial_dropout),
    "SpatialDropout, channels first": Layer("SpatialDropout", 0.3, {"channel_axis": 1, "bits": 32}, jaxnorm.spatial_dropout),
    "LockedDropout": Layer("LockedDropout", 0.3, {"time_axis": 2}, jaxnorm.locked_dropout),
    "HeadDropout": Layer("HeadDropout", 0.3, {"head_axis": -2}, jaxnorm.head_dropout),
    "DropPath": Layer("DropPath", 0.3, {"mode": "batch"}, jaxnorm.drop_path),
    "DropPath, unscaled": Layer(
        "DropPath", 0.3, {"scale": False}, jaxnorm.drop_path, inference=lambda x: jaxnorm.weight_scaled(x, 0.3)
    ),
    "AlphaDropout": Layer("AlphaDropout", 0.3, {"mean": 0.5, "var": 4.0, "broadcast_dims": (1, 2)}, jaxnorm.alpha_dropout),
    "GaussianNoise": Layer("GaussianNoise", 1.5, {"broadcast_dims": (1,)}, jaxnorm.gaussian_noise),
    "Zoneout": Layer("Zoneout", 0.3, {}, jaxnorm.zoneout, (X, 1 - X), lambda h_prev, h: jaxnorm.zoneout_mean(h_prev, h, 0.3)),
}
AMOUNTS = {"GaussianNoise": "std"}

each_api = pytest.mark.parametrize("api", PACKAGES)
each = pytest.mark.parametrize("name", LAYERS)


def call(
    api: str,
    layer: Layer,
    *inputs: jax.Array,
    amount: Any = None,
    seed: int | None = 3,
    deterministic: Any = False,
    **fields: Any,
) -> Any:
    """Returns the output of a layer, with the key of this seed, or without any."""
    module = getattr(PACKAGES[api], layer.name)(layer.amount if amount is None else amount, **{**layer.fields, **fields})
    key = None if seed is None else jax.random.key(seed)
    if api == "linen":
        return module.apply({}, *inputs, deterministic=deterministic, rng=key)
    return module(*inputs, deterministic=deterministic, rngs=key)


@each_api
@each
def test_a_layer_is_its_function(api: str, name: str) -> None:
    layer = LAYERS[name]
    y = call(api, layer, *layer.inputs)
    assert_array_equal(y, layer.function(jax.random.key(3), *layer.inputs, layer.amount, **layer.fields))
    assert any((y != call(api, layer, *layer.inputs, seed=seed)).any() for seed in range(4, 14))


@each_api
@each
def test_inference_needs_no_key(api: str, name: str) -> None:
    """Pitfalls 79 and 87: twice the same, to the bit, whatever the amount is; traced too."""
    layer = LAYERS[name]
    expected = layer.inference(*layer.inputs)
    assert_array_equal(call(api, layer, *layer.inputs, seed=None, deterministic=True), expected)
    assert_array_equal(call(api, layer, *layer.inputs, seed=None, amount=0.0), layer.inputs[-1])
    traced = jax.jit(lambda flag: call(api, layer, *layer.inputs, deterministic=flag))
    assert_array_equal(traced(True), expected)
    close(traced(False), call(api, layer, *layer.inputs))
    amount = jax.jit(lambda amount: call(api, layer, *layer.inputs, amount=amount))
    close(amount(layer.amount), call(api, layer, *layer.inputs))


@each_api
@each
def test_bad_fields_and_inputs_are_named(api: str, name: str) -> None:
    layer = LAYERS[name]
    amount = AMOUNTS.get(layer.name, "rate")
    for bad, error in ((-0.1, ValueError), (float("nan"), ValueError), ("0.5", TypeError), (None, TypeError), (True, TypeError)):
        with pytest.raises(error, match=f"^{amount} must be .* got {bad!r}"):
            call(api, layer._replace(amount=bad), *layer.inputs)
    bits = "16 or 32" if layer.name == "GaussianNoise" else "8, 16 or 32"
    with pytest.raises(ValueError, match=f"bits must be {bits}, got 7"):
        call(api, layer, *layer.inputs, bits=7, deterministic=True)
    for deterministic in (False, True):
        with pytest.raises(TypeError, match=r"^(inputs|h) must be .*int32"):
            call(api, layer, *(x.astype(int) for x in layer.inputs), deterministic=deterministic)


@each_api
def test_rates_of_one(api: str) -> None:
    """Without a key where nothing is left; alpha dropout has no such limit."""
    x = X.at[0, 0].set(jnp.nan)
    for name in ("SpatialDropout", "LockedDropout", "HeadDropout", "DropPath", "DropPath, unscaled"):
        assert_array_equal(call(api, LAYERS[name], x, amount=1.0, seed=None), jnp.zeros_like(x))
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1"):
        call(api, LAYERS["AlphaDropout"], x, amount=1.0)
    assert_array_equal(call(api, LAYERS["Zoneout"], X, x, amount=1.0), X)


class Net(flax.linen.Module):
    """A cell whose state is zoned out, and a branch that is dropped."""

    @flax.linen.compact
    def __call__(self, h: jax.Array, x: jax.Array, *, train: bool) -> jax.Array:
        new = jnp.tanh(flax.linen.Dense(3)(x) + h)
        h = jaxnorm.linen.Zoneout(0.3)(h, new, deterministic=not train)
        return h + jaxnorm.linen.DropPath(0.5, deterministic=not train)(flax.linen.Dense(3)(h))


def test_layers_in_a_network_of_linen_draw_from_its_stream() -> None:
    h, x = batch((8, 3)), batch((8, 5))
    variables = Net().init(jax.random.key(0), h, x, train=False)
    run = jax.jit(
        lambda seed, train: Net().apply(variables, h, x, train=train, rngs={"dropout": jax.random.key(seed)}), static_argnums=1
    )
    assert_array_equal(run(1, True), run(1, True))
    assert (run(1, True) != run(2, True)).any()
    assert_array_equal(run(1, False), run(2, False))


def test_layers_in_a_network_of_nnx_advance_their_streams_and_obey_train_and_eval() -> None:
    model = flax.nnx.Sequential(
        flax.nnx.Linear(3, 4, rngs=flax.nnx.Rngs(0)),
        jaxnorm.nnx.AlphaDropout(0.3, rngs=flax.nnx.Rngs(1)),
        jaxnorm.nnx.GaussianNoise(0.3, rngs=flax.nnx.Rngs(2)),
    )
    x = batch((8, 3))
    run = flax.nnx.jit(lambda model, x: model(x))
    assert (run(model, x) != run(model, x)).any()
    model.eval()
    close(run(model, x), model.layers[0](x))


def test_heads_must_be_named() -> None:
    for package in PACKAGES.values():
        with pytest.raises(TypeError, match="head_axis"):
            package.HeadDropout(0.1)


def test_linen_and_nnx_have_the_same_fields() -> None:
    for layer in LAYERS.values():
        ours = getattr(jaxnorm.linen, layer.name).__dataclass_fields__
        own = {name for name in ours if name not in ("parent", "name", "deterministic", "rng_collection", "bits")}
        made = getattr(jaxnorm.nnx, layer.name)(layer.amount, **layer.fields)
        assert all(hasattr(made, name) for name in own)
        assert np.ndim(getattr(made, AMOUNTS.get(layer.name, "rate"))) == 0


def rows_of(table: str, name: str) -> int:
    return sum(line.startswith("│") and name in line for line in table.splitlines())


def test_tables_of_layers_have_a_row_for_each() -> None:
    """What the layers share is no call of its own."""
    layer, x, wide = jaxnorm.linen.Dropout(0.3, deterministic=False), jnp.ones((2, 3)), {"width": 200}
    assert rows_of(layer.tabulate({"dropout": jax.random.key(0)}, x, console_kwargs=wide), "Dropout") == 1
    layers = (getattr(jaxnorm.nnx, name)(rngs=flax.nnx.Rngs(0), **fields) for name, fields in IN_TABLE.items())
    table = flax.nnx.tabulate(flax.nnx.Sequential(*layers), x, console_kwargs=wide)
    assert [rows_of(table, name) for name in IN_TABLE] == [1, 1]
