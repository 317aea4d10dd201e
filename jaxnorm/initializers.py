"""Initializers of kernels that take noise into account: Xavier, He and LeCun.

A unit `y = sum(w_i n_i x_i)` over `fan_in` inputs, each times noise n of mean 1, has `E[y^2] = fan_in Var[w] E[n^2] E[x^2]`; and
the gradient that an input gets of `fan_out` units grows by `fan_out Var[w] E[n^2]` likewise. Noise multiplies both by
`E[n^2] = 1 + Var[n]`, which is `1 / (1 - rate)` for dropout, Gaussian dropout and drop connect. So that signals keep their size,
the variance of the weights is what it is without noise, divided by `E[n^2]`: times `1 - rate`. It is the same where the noise is
on the output of the layer, and another layer follows.

Give the rate of `dropout` before or after the layer, once; for `uniform_dropout` that of equal variance, `beta^2 / (3 + beta^2)`.
What `classic_dropout` leaves is not of mean 1: this is not for it. A norm after the layer makes it needless.

Each is an initializer of `jax.nn.initializers.variance_scaling`, `(key, shape, dtype) -> kernel`, also for Flax.

References:
  Hendrycks, Gimpel, "Adjusting for dropout variance in batch normalization and weight initialization", 2016,
  https://arxiv.org/abs/1607.02488.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax

from jaxnorm._checks import Scalar, check_scalar

__all__ = ["he", "lecun", "xavier"]

Distribution = Literal["truncated_normal", "normal", "uniform"]
Initializer = Callable[..., jax.Array]


def xavier(rate: Scalar, *, distribution: Distribution = "uniform", **axes: int | Sequence[int]) -> Initializer:
    """Returns an initializer with `Var[w] = 2 (1 - rate) / (fan_in + fan_out)`, for units that are linear around 0, as tanh.

    Args:
      rate: of the noise, in [0, 1]; a number or a traced scalar.
      distribution: "truncated_normal", "normal" or "uniform".
      **axes: `in_axis=-2, out_axis=-1, batch_axis=()` of the kernel, as of `jax.nn.initializers.variance_scaling`.

    Returns:
      A function `(key, shape, dtype) -> kernel`.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or if distribution is another word.
      TypeError: if rate is no number.

    References:
      Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
      https://proceedings.mlr.press/v9/glorot10a.html.

    Example:
      >>> import jax, jaxnorm.initializers
      >>> kernel = jaxnorm.initializers.xavier(0.5)(jax.random.key(0), (300, 200))
      >>> print(f"{kernel.var() * 500:.2f}")
      1.00
    """
    return _scaled(1.0, "fan_avg", rate, distribution, axes)


def he(rate: Scalar, *, distribution: Distribution = "truncated_normal", **axes: int | Sequence[int]) -> Initializer:
    """Returns an initializer with `Var[w] = 2 (1 - rate) / fan_in`, for ReLU.

    Args:
      rate: of the noise, in [0, 1]; a number or a traced scalar.
      distribution: "truncated_normal", "normal" or "uniform".
      **axes: as in `xavier`.

    Returns:
      A function `(key, shape, dtype) -> kernel`.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or if distribution is another word.
      TypeError: if rate is no number.

    References:
      He, Zhang, Ren, Sun, "Delving deep into rectifiers: surpassing human-level performance on ImageNet classification", ICCV
      2015, https://arxiv.org/abs/1502.01852.

    Example:
      >>> import jax, jaxnorm.initializers
      >>> kernel = jaxnorm.initializers.he(0.5)(jax.random.key(0), (300, 200))
      >>> print(f"{kernel.var() * 300:.2f}")
      1.00
    """
    return _scaled(2.0, "fan_in", rate, distribution, axes)


def lecun(rate: Scalar, *, distribution: Distribution = "truncated_normal", **axes: int | Sequence[int]) -> Initializer:
    """Returns an initializer with `Var[w] = (1 - rate) / fan_in`, for linear units and SELU.

    (After SELU goes `alpha_dropout`, which keeps the variance: rate 0.)

    Args:
      rate: of the noise, in [0, 1]; a number or a traced scalar.
      distribution: "truncated_normal", "normal" or "uniform".
      **axes: as in `xavier`.

    Returns:
      A function `(key, shape, dtype) -> kernel`.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or if distribution is another word.
      TypeError: if rate is no number.

    References:
      LeCun, Bottou, Orr, Müller, "Efficient backprop", Neural networks: tricks of the trade, 1998,
      https://doi.org/10.1007/3-540-49430-8_2.

    Example:
      >>> import jax, jaxnorm.initializers
      >>> kernel = jaxnorm.initializers.lecun(0.5)(jax.random.key(0), (300, 200))
      >>> print(f"{kernel.var() * 300:.2f}")
      0.50
    """
    return _scaled(1.0, "fan_in", rate, distribution, axes)


def _scaled(scale: float, mode: Any, rate: Scalar, distribution: Any, axes: Any) -> Initializer:
    check_scalar("rate", rate, low=0, high=1)
    return jax.nn.initializers.variance_scaling(scale * (1 - rate), mode, distribution, **axes)
