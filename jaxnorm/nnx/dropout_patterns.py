"""Dropout in patterns as `flax.nnx` modules: whole channels, heads and examples, and one mask for all steps in time."""

from typing import ClassVar, Unpack

import jax

from jaxnorm._noise_modules import DROP_PATH, HEAD_DROPOUT, LOCKED_DROPOUT, SPATIAL_DROPOUT
from jaxnorm.nnx._noise_layer import NoiseLayer, NoiseOptions


class SpatialDropout(NoiseLayer):
    """Spatial dropout: `jaxnorm.spatial_dropout` with the rng stream and call of `Dropout`.

    Training: `y = m x / (1 - rate)` with one m of 0 or 1 for every channel of every example. Inference (`deterministic`): the
    identity.

    Args:
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      channel_axis: the axis of the channels, not the first one.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Tompson, Goroshin, Jain, LeCun, Bregler, "Efficient object localization using convolutional networks", CVPR 2015,
      https://arxiv.org/abs/1411.4280.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> y = jaxnorm.nnx.SpatialDropout(0.5, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 3)))
      >>> print(y[:, 0], bool((y == y[:, :1]).all()))
      [[2. 2. 2.]
       [2. 2. 0.]] True
    """

    noise: ClassVar = SPATIAL_DROPOUT

    def __init__(self, rate: float | jax.Array, *, channel_axis: int = -1, **options: Unpack[NoiseOptions]):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.channel_axis = channel_axis


class HeadDropout(NoiseLayer):
    """Dropout of heads of attention: `jaxnorm.head_dropout` with the rng stream and call of `Dropout`.

    Training: `y = m x / (1 - rate)` with one m of 0 or 1 for every head of every example. Inference (`deterministic`): the
    identity.

    Args:
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      head_axis: the axis of the heads, not the first one: -2 for `[B, T, H, D]`.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Zhou, Ge, Xu, Wei, Zhou, "Scheduled DropHead: a regularization method for transformer models", Findings of EMNLP 2020,
      https://arxiv.org/abs/2004.13342.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> y = jaxnorm.nnx.HeadDropout(0.5, head_axis=-2, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 4, 3)))
      >>> print(y[:, 0, :, 0], bool((y == y[:, :1, :, :1]).all()))
      [[2. 2. 2. 2.]
       [2. 0. 0. 2.]] True
    """

    noise: ClassVar = HEAD_DROPOUT

    def __init__(self, rate: float | jax.Array, *, head_axis: int, **options: Unpack[NoiseOptions]):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.head_axis = head_axis


class LockedDropout(NoiseLayer):
    """Locked dropout: `jaxnorm.locked_dropout` with the rng stream and call of `Dropout`.

    Training: `y = m x / (1 - rate)` with an m of 0 or 1 for every element of every example, the same at all steps. Inference
    (`deterministic`): the identity.

    Args:
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      time_axis: the axis of the steps.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Gal, Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NIPS 2016,
      https://arxiv.org/abs/1512.05287.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> y = jaxnorm.nnx.LockedDropout(0.5, rngs=nnx.Rngs(2))(jnp.ones((1, 3, 4)))
      >>> print(y)
      [[[0. 2. 0. 0.]
        [0. 2. 0. 0.]
        [0. 2. 0. 0.]]]
    """

    noise: ClassVar = LOCKED_DROPOUT

    def __init__(self, rate: float | jax.Array, *, time_axis: int = 1, **options: Unpack[NoiseOptions]):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.time_axis = time_axis


class DropPath(NoiseLayer):
    """Stochastic depth: `jaxnorm.drop_path` with the rng stream and call of `Dropout`.

    Training: `y = m x / (1 - rate)` with one m of 0 or 1 for every example. Inference (`deterministic`): the identity; with
    `scale=False` it is `(1 - rate) x`, and training does not divide.

    Args:
      rate: the probability of dropping, not of surviving, in [0, 1]; a number or a traced scalar.
      mode: "row" for a decision for every example, "batch" for one for all.
      scale: whether what is kept is divided by the probability to keep.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Huang, Sun, Liu, Sedra, Weinberger, "Deep networks with stochastic depth", ECCV 2016, https://arxiv.org/abs/1603.09382.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> y = jaxnorm.nnx.DropPath(0.5, rngs=nnx.Rngs(2))(jnp.ones((4, 3)))
      >>> print(y)
      [[0. 0. 0.]
       [2. 2. 2.]
       [0. 0. 0.]
       [0. 0. 0.]]
    """

    noise: ClassVar = DROP_PATH

    def __init__(self, rate: float | jax.Array, *, mode: str = "row", scale: bool = True, **options: Unpack[NoiseOptions]):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.mode = mode
        self.scale = scale
