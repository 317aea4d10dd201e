"""Dropout in patterns: whole channels, heads, examples and branches, and one mask for all steps in time.

Each is `dropout` of which all elements along some axes share one draw: its masks, limits and gradients are those of `dropout`
with these axes as `broadcast_dims`.
"""

import jax

from jaxnorm._axes import canonical_axes, check_one_axis, other_axes
from jaxnorm._checks import Scalar, check_choice, check_float, check_known_flag
from jaxnorm._dropout.elementwise import classic_dropout, dropout


def spatial_dropout(key: jax.Array, x: jax.Array, rate: Scalar, *, channel_axis: int = -1, bits: int = 16) -> jax.Array:
    """Drops whole channels of each example.

    Training: `y = m x / (1 - rate)`, `m = 1` with probability `1 - rate`, else 0, independently for every channel of every
    example and the same at all positions, so that `E[y] = x`. Inference: the identity; do not call it.

    Neighbors in a map are so much alike that dropout of single elements takes little away. On maps of one element it is
    `dropout`.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, `[B, ..., C]` with any number of axes between, or with the channels on `channel_axis`.
        The first axis is that of the examples; for a single example take `dropout` with `broadcast_dims`.
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar, or an array of x's rank that broadcasts to the
        mask, as `[B, 1, 1, 1]` with one rate for each example. No gradient flows into it. A traced rate outside [0, 1] gives NaN
        everywhere.
      channel_axis: the axis of the channels, not the first one.
      bits: random bits a channel that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: as in `dropout`; or if channel_axis is out of range, the first axis, or several.
      TypeError: as in `dropout`.

    References:
      Tompson, Goroshin, Jain, LeCun, Bregler, "Efficient object localization using convolutional networks", CVPR 2015,
      https://arxiv.org/abs/1411.4280.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> y = jaxnorm.spatial_dropout(jax.random.key(2), jnp.ones((2, 5, 3)), 0.5)
      >>> print(y[:, 0], bool((y == y[:, :1]).all()))
      [[0. 2. 2.]
       [0. 0. 2.]] True
    """
    return _of_each_example(key, x, rate, "channel_axis", channel_axis, bits)


def head_dropout(key: jax.Array, x: jax.Array, rate: Scalar, *, head_axis: int, bits: int = 16) -> jax.Array:
    """Drops whole heads of attention of each example (DropHead).

    Training: `y = m x / (1 - rate)`, `m = 1` with probability `1 - rate`, else 0, independently for every head of every example,
    so that `E[y] = x`. Inference: the identity; do not call it.

    For what each head gives, before the projection that joins them. The paper rescales by the number of heads over the number of
    those kept, example by example, for which some head must be kept; dividing by the probability needs no such condition: where
    all heads are dropped, y is 0.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, `[B, T, H, D]` with `head_axis=-2`, or `[B, H, T, D]` with `head_axis=1`, or any other
        with the examples on the first axis.
      rate: the probability of dropping, as in `spatial_dropout`.
      head_axis: the axis of the heads, not the first one.
      bits: random bits a head that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: as in `dropout`; or if head_axis is out of range, the first axis, or several.
      TypeError: as in `dropout`.

    References:
      Zhou, Ge, Xu, Wei, Zhou, "Scheduled DropHead: a regularization method for transformer models", Findings of EMNLP 2020,
      https://arxiv.org/abs/2004.13342.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> y = jaxnorm.head_dropout(jax.random.key(1), jnp.ones((2, 5, 4, 3)), 0.5, head_axis=-2)
      >>> print(y[:, 0, :, 0], bool((y == y[:, :1, :, :1]).all()))
      [[2. 2. 2. 2.]
       [0. 2. 0. 0.]] True
    """
    return _of_each_example(key, x, rate, "head_axis", head_axis, bits)


def locked_dropout(key: jax.Array, x: jax.Array, rate: Scalar, *, time_axis: int = 1, bits: int = 16) -> jax.Array:
    """Drops the same elements at all steps in time (variational dropout of recurrent networks).

    Training: `y = m x / (1 - rate)`, `m = 1` with probability `1 - rate`, else 0, independently for every element of every
    example and the same at all steps, so that `E[y] = x`. Inference: the identity; do not call it.

    A state that loses other elements at every step forgets all of them, `(1 - rate)^T`; one that loses the same keeps the rest.
    Inside a scan over steps, where x has no axis of time, draw once before it: `dropout_mask` and `apply_mask`.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, `[B, T, ..., C]` or with the steps on `time_axis`.
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar, or an array of x's rank that broadcasts to the
        mask. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      time_axis: the axis of the steps.
      bits: random bits an element of the mask that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: as in `dropout`; or if time_axis is out of range, or several.
      TypeError: as in `dropout`.

    References:
      Gal, Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NIPS 2016,
      https://arxiv.org/abs/1512.05287. Merity, Keskar, Socher, "Regularizing and optimizing LSTM language models", ICLR 2018,
      https://arxiv.org/abs/1708.02182.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> print(jaxnorm.locked_dropout(jax.random.key(0), jnp.ones((1, 3, 4)), 0.5))
      [[[2. 2. 2. 0.]
        [2. 2. 2. 0.]
        [2. 2. 2. 0.]]]
    """
    x = check_float("x", x)
    axes = canonical_axes("time_axis", time_axis, x.ndim)
    check_one_axis("time_axis", axes, time_axis)
    return dropout(key, x, rate, broadcast_dims=axes, bits=bits)


def drop_path(key: jax.Array, x: jax.Array, rate: Scalar, *, mode: str = "row", scale: bool = True, bits: int = 16) -> jax.Array:
    """Drops what a residual branch gives, for whole examples or for the whole batch (stochastic depth).

    Training: `y = m x / (1 - rate)`, `m = 1` with probability `1 - rate`, else 0, one m for every example, so that `E[y] = x`;
    for the residual branch before its shortcut is added. Inference: the identity; do not call it. Inference with `scale=False`:
    `weight_scaled(x, rate)`.

    With `mode="batch"` and `scale=False` it is the paper's: `y = m x` with one m for all examples. `mode="row"` is what libraries
    of vision models call drop path. The drop path of FractalNets is another thing, `fractal_join`.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, `[B, ...]`.
      rate: the probability of dropping, not of surviving, in [0, 1]; a number or a traced scalar, or an array of x's rank that
        broadcasts to the mask, as `[B, 1, 1, 1]`. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      mode: "row" for a decision for every example, "batch" for one for all of x.
      scale: whether what is kept is divided by the probability to keep; if not, `E[y] = (1 - rate) x`, and the probability
        differs from `1 - rate` by less than 2^-16 with 16 bits, by less than 2^-8 with 8.
      bits: random bits a decision: 8, 16 or 32, as in `dropout`.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: as in `dropout`; or if mode is another one.
      TypeError: as in `dropout`; or if scale is no bool.

    References:
      Huang, Sun, Liu, Sedra, Weinberger, "Deep networks with stochastic depth", ECCV 2016, https://arxiv.org/abs/1603.09382.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> print(jaxnorm.drop_path(jax.random.key(3), jnp.ones((4, 3)), 0.5))
      [[2. 2. 2.]
       [0. 0. 0.]
       [2. 2. 2.]
       [0. 0. 0.]]
    """
    x = check_float("x", x)
    check_choice("mode", mode, ("row", "batch"))
    function = dropout if check_known_flag("scale", scale) else classic_dropout
    return function(key, x, rate, broadcast_dims=range(mode == "row", x.ndim), bits=bits)


def _of_each_example(key: jax.Array, x: jax.Array, rate: Scalar, name: str, axis: int, bits: int) -> jax.Array:
    """Drops whole parts along an axis, each example's own."""
    x = check_float("x", x)
    axes = canonical_axes(name, axis, x.ndim)
    check_one_axis(name, axes, axis)
    if axes == (0,):
        raise ValueError(f"{name} must not be the first axis, that of the examples, got {axis!r} for an x of rank {x.ndim}")
    return dropout(key, x, rate, broadcast_dims=other_axes((0, *axes), x.ndim), bits=bits)
