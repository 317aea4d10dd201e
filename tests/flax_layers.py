"""One way to call the layers of linen and of nnx, Flax's and jaxnorm's, so that a test can be about all of them."""

from types import ModuleType
from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm.linen
import jaxnorm.nnx

AFFINE = ("scale", "bias")
Variables = dict[str, jax.Array]
"""`scale` and `bias` if there are such, `mean`, and `var` or what the layer has instead."""


class Linen:
    """Layers of a package of `flax.linen` modules."""

    def __init__(self, package: ModuleType):
        self.package = package

    def batch_norm(self, variables: Variables, x: jax.Array, **given: Any):
        """Returns y and the running statistics of `BatchNorm`."""
        return self.batch_layer("BatchNorm", variables, x, **given)

    def batch_layer(self, name: str, variables: Variables, x: jax.Array, *, frozen: Any = False, mask: Any = None, **fields: Any):
        """Returns y and the running statistics of the layer of this name."""
        norm = getattr(self.package, name)(**_without(variables), **fields)
        tree = {
            "params": {name: variables[name] for name in AFFINE if name in variables},
            "batch_stats": {name: value for name, value in variables.items() if name not in AFFINE},
        }
        y, updates = norm.apply(tree, x, use_running_average=frozen, mask=mask, mutable=["batch_stats"])
        return y, dict(updates["batch_stats"])

    def layer_norm(self, params: Variables, x: jax.Array, **given: Any) -> jax.Array:
        """Returns the output of `LayerNorm` with these parameters."""
        return self.sample_layer("LayerNorm", params, x, **given)

    def sample_layer(self, name: str, params: Variables, x: jax.Array, *, mask: Any = None, **fields: Any) -> jax.Array:
        """Returns the output of the norm of this name with these parameters."""
        norm = getattr(self.package, name)(**_without(params, name), **fields)
        return norm.apply({"params": params}, x, mask=mask)

    def noise(self, name: str, seed: int, x: jax.Array, amount: Any, *, deterministic: Any = False, **fields: Any) -> jax.Array:
        """Returns the output of the layer of this name, with a key from the stream `dropout` of this seed."""
        layer = getattr(self.package, name)(amount, **fields)
        return layer.apply({}, x, deterministic=deterministic, rngs={"dropout": jax.random.key(seed)})

    def noise_without_key(self, name: str, x: jax.Array, amount: Any, *, deterministic: Any = False) -> jax.Array:
        """Returns the output of the layer of this name, with no stream to draw from."""
        return getattr(self.package, name)(amount).apply({}, x, deterministic=deterministic)


class Nnx:
    """Layers of a package of `flax.nnx` modules."""

    def __init__(self, package: ModuleType):
        self.package = package

    def batch_norm(self, variables: Variables, x: jax.Array, **given: Any):
        """Returns y and the running statistics of `BatchNorm`."""
        return self.batch_layer("BatchNorm", variables, x, **given)

    def batch_layer(self, name: str, variables: Variables, x: jax.Array, *, frozen: Any = False, mask: Any = None, **fields: Any):
        """Returns y and the running statistics of the layer of this name."""
        shape = variables["mean"].shape
        size = shape[0] if len(shape) == 1 else shape
        norm = getattr(self.package, name)(size, **_without(variables), rngs=flax.nnx.Rngs(0), **fields)
        for part, value in variables.items():
            getattr(norm, part).set_value(jnp.asarray(value))
        y = norm(x, use_running_average=frozen, mask=mask)
        return y, {part: getattr(norm, part)[...] for part in variables if part not in AFFINE}

    def layer_norm(self, params: Variables, x: jax.Array, **given: Any) -> jax.Array:
        """Returns the output of `LayerNorm` with these parameters."""
        return self.sample_layer("LayerNorm", params, x, **given)

    def sample_layer(self, name: str, params: Variables, x: jax.Array, *, mask: Any = None, **fields: Any) -> jax.Array:
        """Returns the output of the norm of this name with these parameters."""
        size = next((part.size for part in params.values()), x.shape[-1])
        norm = getattr(self.package, name)(size, **_without(params, name), rngs=flax.nnx.Rngs(0), **fields)
        for part, value in params.items():
            getattr(norm, part).set_value(jnp.asarray(value))
        return norm(x, mask=mask)

    def noise(self, name: str, seed: int, x: jax.Array, amount: Any, *, deterministic: Any = False, **fields: Any) -> jax.Array:
        """Returns the output of the layer of this name, with a key from the stream `dropout` of this seed."""
        rngs = flax.nnx.Rngs(dropout=seed)
        return getattr(self.package, name)(amount, rngs=rngs, **fields)(x, deterministic=deterministic)

    def noise_without_key(self, name: str, x: jax.Array, amount: Any, *, deterministic: Any = False) -> jax.Array:
        """Returns the output of the layer of this name, with no stream to draw from."""
        return getattr(self.package, name)(amount)(x, deterministic=deterministic)


def _without(variables: Variables, layer: str = "") -> dict[str, bool]:
    parts = AFFINE[:1] if layer == "RMSNorm" else AFFINE
    return {f"use_{name}": name in variables for name in parts}


OURS = {"linen": Linen(jaxnorm.linen), "nnx": Nnx(jaxnorm.nnx)}
FLAX = {"linen": Linen(flax.linen), "nnx": Nnx(flax.nnx)}


def flax_masks(package: ModuleType) -> dict[str, int]:
    """Returns the arguments with which the Dropout of a package draws the masks of Flax; its own class takes none."""
    return {} if package in (flax.linen, flax.nnx) else {"bits": 32}


def new_variables(
    shape: tuple[int, ...], *, affine: bool = True, param_dtype: Any = np.float32, mean_dtype: Any = np.float32, seed: int = 0
) -> Variables:
    """Returns variables of a batch norm that has been trained for a while."""
    draw = np.random.default_rng(seed)
    variables = {
        "mean": jnp.asarray(draw.normal(size=shape).astype(mean_dtype)),
        "var": jnp.asarray(draw.uniform(0.5, 2, shape).astype(np.float32)),
    }
    if affine:
        variables["scale"] = jnp.asarray(draw.uniform(0.5, 2, shape), param_dtype)
        variables["bias"] = jnp.asarray(draw.normal(size=shape), param_dtype)
    return variables


def batch(shape: tuple[int, ...], *, mean: float = 0.5, seed: int = 1, dtype: Any = np.float32) -> jax.Array:
    """Returns a batch with this mean and standard deviation 2."""
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 2, shape), dtype)


def close(actual: Any, desired: Any, atol: float = 1e-6) -> None:
    """Asserts that trees of arrays agree to float32's precision."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=atol), actual, desired)
