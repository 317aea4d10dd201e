"""Parameters and state of every layer that the other libraries have, and one way to call what takes them there and back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm import interop

C = 3
PEERS = ("torch", "keras", "haiku", "equinox", "linen", "nnx")
AFFINE = ("layer_norm", "rms_norm", "group_norm", "instance_norm")
LAYERS: dict[str, tuple[str, ...]] = {
    "torch": ("batch_norm", "tracked_instance_norm", *AFFINE, "weight_norm", "spectral_norm"),
    "keras": ("batch_norm", "batch_renorm", *AFFINE, "spectral_norm"),
    "haiku": ("batch_norm", *AFFINE, "spectral_norm"),
    "equinox": ("batch_norm", "layer_norm", "rms_norm", "group_norm", "weight_norm", "spectral_norm"),
    "linen": ("batch_norm", "batch_renorm", "tracked_instance_norm", *AFFINE, "weight_norm", "spectral_norm"),
    "nnx": ("batch_norm", "batch_renorm", "tracked_instance_norm", *AFFINE, "weight_norm", "spectral_norm"),
}
EVERY = [(peer, layer) for peer, layers in LAYERS.items() for layer in layers]
every = pytest.mark.parametrize(("peer", "layer"), EVERY)


def numbers(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).uniform(0.3, 3, shape).astype(dtype)


def parts_of(peer: str, layer: str, dtype: Any = np.float32) -> tuple[Any, ...]:
    """Parameters and state of a layer here, of those that the peer has: what its `to_` takes by position."""
    kernel = jnp.asarray(numbers(2, 2, 5, C, dtype=dtype))
    if layer == "weight_norm":
        return (jaxnorm.WeightNormParams(kernel, jnp.asarray(numbers(C, dtype=dtype))),)
    if layer == "spectral_norm":
        state = jaxnorm.SpectralStats(jnp.asarray(numbers(C)), jnp.asarray(np.float32(1.7)))
        return (state,) if peer == "haiku" else (kernel, state)
    bias = layer != "rms_norm" or peer == "equinox"
    scale, offset, mean, var = (jnp.asarray(numbers(C, seed=i, dtype=dtype)) for i in range(4))
    params = jaxnorm.AffineParams(scale, offset if bias else None)
    kind = {"batch_renorm": jaxnorm.RenormStats, "batch_norm": jaxnorm.RunningStats}
    kind |= {"tracked_instance_norm": jaxnorm.RunningStats}
    return (params, kind[layer](mean.astype(jnp.float32), var.astype(jnp.float32))) if layer in kind else (params,)


def export(peer: str, layer: str, *parts: Any, **options: Any) -> dict[str, Any]:
    own = {"ndim": 4} if peer == "haiku" and layer == "batch_norm" else {}
    return getattr(interop, f"to_{peer}")(*parts, layer=layer, **own, **options)


def take(peer: str, layer: str, entries: Any, **options: Any) -> tuple[Any, ...]:
    found = getattr(interop, f"from_{peer}")(entries, layer=layer, **options)
    return found if type(found) is tuple else (found,)


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
