"""The convolutional network of experiments is made of convolutions and pooling as jax has them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm.experiments._convnet import ConvNet, max_pool, patches
from jaxnorm.experiments._experiment import once


def test_a_dense_layer_of_patches_is_a_convolution() -> None:
    x, kernel = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    expected = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(patches(x) @ kernel.reshape(-1, 5), expected, atol=1e-4)


def test_max_pool_takes_the_largest_of_a_window() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    expected = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(max_pool(x), expected)


def test_noise_is_where_it_belongs_and_in_training_alone() -> None:
    init_key, key = jax.random.split(jax.random.key(0))
    x = jnp.ones((4, 64))
    shapes = []

    def draw(key: jax.Array, x: jax.Array) -> jax.Array:
        shapes.append(x.shape)
        return x

    model = ConvNet(before_pooling=draw, dense=draw, maps=(2, 3), units=5)
    params, stats = model.init(init_key)
    outputs, _ = model.apply(key, params, stats, x, train=True)
    assert (outputs.shape, shapes) == ((4, 10), [(4, 8, 8, 2), (4, 4, 4, 3), (4, 5)])
    model.apply(jax.random.key(1), params, stats, x, train=False)
    assert len(shapes) == 3


def test_a_figure_of_one_arm_is_found_whatever_the_arm_is_called() -> None:
    of_one = {"rank": np.ones(2)}
    for found in ({"a": of_one, "b": {}}, {"a": {}, "b": of_one}):
        np.testing.assert_array_equal(once("rank")(found), np.ones(2))
