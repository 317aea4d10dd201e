"""The modules of drop block, cutout, max-pooling dropout and patch dropout: what they give, in training and in inference."""

from typing import Any

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

X = jnp.asarray(np.random.default_rng(0).normal(1, 2, (3, 6, 4, 2)), jnp.float32)
LAYERS = {  # by class: its first argument, the others, and what it is in inference
    "DropBlock": (0.3, {"block_size": (3, 2), "channel_axis": 1, "shared": True, "rescale": "batch", "bits": 32}, lambda x: x),
    "Cutout": (2, {"holes": 2, "fill": 0.5, "channel_axis": 1}, lambda x: x),
    "MaxPoolDropout": (
        0.3,
        {"window": 2, "strides": 1, "bits": 8},
        lambda x: jaxnorm.max_pool_dropout_mean(x, 0.3, window=2, strides=1),
    ),
    "PatchDropout": (0.3, {"num_prefix_tokens": 2, "ordered": True}, lambda x: (x, jnp.tile(jnp.arange(4), (3, 1)))),
}
FUNCTIONS = {
    "DropBlock": jaxnorm.drop_block,
    "Cutout": jaxnorm.cutout,
    "MaxPoolDropout": jaxnorm.max_pool_dropout,
    "PatchDropout": jaxnorm.patch_dropout,
}
each_api = pytest.mark.parametrize("api", ["linen", "nnx"])
each_layer = pytest.mark.parametrize("name", LAYERS)


def call(api: str, name: str, amount: Any, options: dict[str, Any], seed: int | None = 3, **flag: Any) -> Any:
    """What a layer gives with a key of this seed; None for nothing to draw with."""
    key = None if seed is None else jax.random.key(seed)
    if api == "linen":
        return getattr(jaxnorm.linen, name)(amount, **options).apply({}, X, rng=key, **{"deterministic": False, **flag})
    return getattr(jaxnorm.nnx, name)(amount, **options)(X, rngs=key, **flag)


def equal(got: Any, expected: Any) -> None:
    jax.tree.map(assert_array_equal, got, expected)


@each_api
@each_layer
def test_training_is_the_function(api: str, name: str) -> None:
    amount, options, _ = LAYERS[name]
    y = call(api, name, amount, options)
    equal(y, FUNCTIONS[name](jax.random.key(3), X, amount, **options))
    assert any(
        np.any(a != b) for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(call(api, name, amount, options, 4)), strict=True)
    )


@each_api
@each_layer
def test_inference_needs_no_key(api: str, name: str) -> None:
    """Pitfalls 79 and 87: and is the same whatever the rate is."""
    amount, options, inference = LAYERS[name]
    equal(call(api, name, amount, options, None, deterministic=True), inference(X))
    if name in ("DropBlock", "PatchDropout"):
        equal(
            call(api, name, 1.0, options | ({"bits": 16} if name == "DropBlock" else {}), None, deterministic=True), inference(X)
        )


@each_api
@pytest.mark.parametrize("name", ["DropBlock", "MaxPoolDropout", "PatchDropout"])
def test_a_rate_of_0_needs_no_key(api: str, name: str) -> None:
    _, options, inference = LAYERS[name]
    largest = jax.lax.reduce_window(X, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")
    equal(call(api, name, 0.0, options, None), largest if name == "MaxPoolDropout" else inference(X))


@each_api
@pytest.mark.parametrize("name", ["DropBlock", "Cutout", "MaxPoolDropout"])
def test_a_traced_flag_chooses(api: str, name: str) -> None:
    amount, options, inference = LAYERS[name]
    run = jax.jit(lambda flag: call(api, name, amount, options, deterministic=flag))
    np.testing.assert_allclose(run(True), inference(X), rtol=1e-6)
    np.testing.assert_allclose(run(False), call(api, name, amount, options), rtol=1e-6)


@each_api
def test_a_traced_flag_of_patches_is_refused(api: str) -> None:
    with pytest.raises(TypeError, match="deterministic must be known when the function is traced"):
        jax.jit(lambda flag: call(api, "PatchDropout", 0.3, {}, deterministic=flag))(True)


@each_api
def test_what_does_not_fit_is_named_in_inference_too(api: str) -> None:
    for name, options in (("DropBlock", {}), ("MaxPoolDropout", {"window": 2})):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 1.5"):
            call(api, name, 1.5, options, deterministic=True)
        with pytest.raises(ValueError, match="bits must be 8, 16 or 32, got 7"):
            call(api, name, 0.5, {**options, "bits": 7}, deterministic=True)


def test_modules_of_nnx_draw_from_their_stream() -> None:
    layer = jaxnorm.nnx.DropBlock(0.3, block_size=2, rngs=flax.nnx.Rngs(dropout=0))
    first, second = layer(X), layer(X)
    assert np.any(first != second)
    layer.eval()
    assert_array_equal(layer(X), X)
