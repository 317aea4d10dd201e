"""Dropout in patterns as `flax.linen` modules: whole channels, heads and examples, and one mask for all steps in time."""

from typing import ClassVar

import jax

from jaxnorm._noise_modules import DROP_PATH, HEAD_DROPOUT, LOCKED_DROPOUT, SPATIAL_DROPOUT
from jaxnorm.linen._noise_layer import NoiseLayer


class SpatialDropout(NoiseLayer):
    """Spatial dropout: `jaxnorm.spatial_dropout` with the rng stream and call of `Dropout`.

    Training: `y = m x / (1 - rate)` with one m of 0 or 1 for every channel of every example. Inference (`deterministic`): the
    identity.

    Attributes:
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      channel_axis: the axis of the channels, not the first one.
      deterministic: whether to return the inputs as they are; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits a channel that decide: 8, 16 or 32.

    References:
      Tompson, Goroshin, Jain, LeCun, Bregler, "Efficient object localization using convolutional networks", CVPR 2015,
      https://arxiv.org/abs/1411.4280.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> drop = jaxnorm.linen.SpatialDropout(0.5, deterministic=False)
      >>> y = drop.apply({}, jnp.ones((2, 5, 3)), rngs={"dropout": jax.random.key(0)})
      >>> print(y[:, 0], bool((y == y[:, :1]).all()))
      [[0. 2. 2.]
       [0. 0. 2.]] True
    """

    noise: ClassVar = SPATIAL_DROPOUT

    rate: float | jax.Array
    channel_axis: int = -1
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16


class HeadDropout(NoiseLayer):
    """Dropout of heads of attention: `jaxnorm.head_dropout` with the rng stream and call of `Dropout`.

    Training: `y = m x / (1 - rate)` with one m of 0 or 1 for every head of every example. Inference (`deterministic`): the
    identity.

    Attributes:
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      head_axis: the axis of the heads, not the first one: -2 for `[B, T, H, D]`.
      deterministic: whether to return the inputs as they are; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits a head that decide: 8, 16 or 32.

    References:
      Zhou, Ge, Xu, Wei, Zhou, "Scheduled DropHead: a regularization method for transformer models", Findings of EMNLP 2020,
      https://arxiv.org/abs/2004.13342.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> drop = jaxnorm.linen.HeadDropout(0.5, head_axis=-2, deterministic=False)
      >>> y = drop.apply({}, jnp.ones((2, 5, 4, 3)), rngs={"dropout": jax.random.key(0)})
      >>> print(y[:, 0, :, 0], bool((y == y[:, :1, :, :1]).all()))
      [[0. 2. 2. 0.]
       [0. 2. 0. 2.]] True
    """

    noise: ClassVar = HEAD_DROPOUT

    rate: float | jax.Array
    head_axis: int
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16


class LockedDropout(NoiseLayer):
    """Locked dropout: `jaxnorm.locked_dropout` with the rng stream and call of `Dropout`.

    Training: `y = m x / (1 - rate)` with an m of 0 or 1 for every element of every example, the same at all steps. Inference
    (`deterministic`): the identity.

    Attributes:
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      time_axis: the axis of the steps.
      deterministic: whether to return the inputs as they are; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits an element of the mask that decide: 8, 16 or 32.

    References:
      Gal, Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NIPS 2016,
      https://arxiv.org/abs/1512.05287.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> drop = jaxnorm.linen.LockedDropout(0.5, deterministic=False)
      >>> y = drop.apply({}, jnp.ones((1, 3, 4)), rngs={"dropout": jax.random.key(0)})
      >>> print(y)
      [[[0. 2. 2. 0.]
        [0. 2. 2. 0.]
        [0. 2. 2. 0.]]]
    """

    noise: ClassVar = LOCKED_DROPOUT

    rate: float | jax.Array
    time_axis: int = 1
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16


class DropPath(NoiseLayer):
    """Stochastic depth: `jaxnorm.drop_path` with the rng stream and call of `Dropout`.

    Training: `y = m x / (1 - rate)` with one m of 0 or 1 for every example. Inference (`deterministic`): the identity; with
    `scale=False` it is `(1 - rate) x`, and training does not divide.

    Attributes:
      rate: the probability of dropping, not of surviving, in [0, 1]; a number or a traced scalar.
      mode: "row" for a decision for every example, "batch" for one for all.
      scale: whether what is kept is divided by the probability to keep.
      deterministic: whether there is no noise; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits a decision: 8, 16 or 32.

    References:
      Huang, Sun, Liu, Sedra, Weinberger, "Deep networks with stochastic depth", ECCV 2016, https://arxiv.org/abs/1603.09382.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> drop = jaxnorm.linen.DropPath(0.5, deterministic=False)
      >>> y = drop.apply({}, jnp.ones((4, 3)), rngs={"dropout": jax.random.key(0)})
      >>> print(y)
      [[0. 0. 0.]
       [2. 2. 2.]
       [2. 2. 2.]
       [0. 0. 0.]]
    """

    noise: ClassVar = DROP_PATH

    rate: float | jax.Array
    mode: str = "row"
    scale: bool = True
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16
