"""Masks of examples of different sizes in one padded batch: norms of it are those of the examples as they are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import AffineParams, batch_norm, group_norm, init_batch_norm, instance_norm, layer_norm, padding_mask

SIZES = jnp.asarray([[5, 2], [3, 4], [1, 1], [5, 4]])
SHAPE = (4, 5, 4, 6)
PLAIN = AffineParams(None, None)


def images() -> tuple[jax.Array, list[np.ndarray]]:
    """A padded batch, with NaN where there is nothing, and the images that are in it."""
    x = np.random.default_rng(0).normal(3, 2, SHAPE).astype(np.float32)
    where = np.broadcast_to(padding_mask(SIZES, SHAPE), SHAPE)
    return jnp.asarray(np.where(where, x, np.nan)), [x[b, :h, :w] for b, (h, w) in enumerate(np.asarray(SIZES))]


def test_batch_norm_of_padded_images_is_that_of_all_their_pixels() -> None:
    x, parts = images()
    params, state = init_batch_norm(6)
    y, new = jax.jit(lambda x, sizes: batch_norm(params, state, x, train=True, momentum=0.0, where=padding_mask(sizes, x.shape)))(
        x, SIZES
    )
    pixels = np.concatenate([part.reshape(-1, 6) for part in parts])
    wanted, of_pixels = batch_norm(params, state, jnp.asarray(pixels), train=True, momentum=0.0)
    got = np.concatenate([np.asarray(y)[b, :h, :w].reshape(-1, 6) for b, (h, w) in enumerate(np.asarray(SIZES))])
    assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert_allclose(new.var, of_pixels.var, rtol=1e-5)
    assert jnp.isfinite(y).all()


@pytest.mark.parametrize("norm", ["group", "instance", "layer"])
def test_norms_of_the_example_are_those_of_each_image_alone(norm: str) -> None:
    call: Any = {
        "group": lambda x, **o: group_norm(PLAIN, x, 3, **o),
        "instance": lambda x, **o: instance_norm(PLAIN, x, **o),
        "layer": lambda x, **o: layer_norm(PLAIN, x, reduction_axes=(1, 2, 3), **o),
    }[norm]
    x, parts = images()
    y = call(x, where=padding_mask(SIZES, SHAPE))
    for b, part in enumerate(parts):
        h, w = part.shape[:2]
        assert_allclose(y[b, :h, :w], call(jnp.asarray(part)[None])[0], rtol=1e-4, atol=1e-5)


def test_sequences_other_axes_and_sizes_out_of_range() -> None:
    mask = padding_mask(jnp.asarray([3, 0, -2, 9]), (4, 5, 6))
    assert mask.shape == (4, 5, 1)
    assert_array_equal(mask.sum((1, 2)), [3, 0, 0, 5])
    first = padding_mask(SIZES, (4, 6, 5, 4), axes=(2, 3))
    assert_array_equal(jnp.moveaxis(first, 1, -1), padding_mask(SIZES, SHAPE))
    assert_array_equal(padding_mask(SIZES[:, ::-1], SHAPE, axes=(2, 1)), padding_mask(SIZES, SHAPE))
    assert_array_equal(padding_mask(SIZES[:, 1], SHAPE, axes=-2), padding_mask(SIZES[:, 1:], SHAPE, axes=(2,)))
    assert_array_equal(padding_mask(SIZES.astype(jnp.uint8), SHAPE), padding_mask(SIZES, SHAPE))


@pytest.mark.parametrize(
    ("sizes", "shape", "axes", "kind", "message"),
    [
        (jnp.ones(4), SHAPE, None, TypeError, "sizes must be an array of ints"),
        ([1, 2, 3, 4], SHAPE, None, TypeError, "sizes must be an array of ints"),
        (
            SIZES[:3],
            SHAPE,
            None,
            ValueError,
            r"sizes must be \[B\] or \[B, k\] for an x of shape \[4, 5, 4, 6\], got shape \[3, 2\]",
        ),
        (SIZES[0, 0], SHAPE, None, ValueError, "sizes must be"),
        (SIZES, SHAPE, (1,), ValueError, r"axes must be 2 axes behind the batch's, got \(1,\)"),
        (SIZES, SHAPE, (0, 1), ValueError, "axes must be 2 axes behind the batch's"),
        (SIZES, SHAPE, (1, 1), ValueError, "axes names an axis twice"),
        (SIZES, SHAPE, (1, 4), ValueError, "axes is out of range"),
        (SIZES, 4, None, TypeError, "shape must be the shape of x, got 4"),
    ],
)
def test_bad_input_is_named(sizes: Any, shape: Any, axes: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        padding_mask(sizes, shape, axes=axes)
