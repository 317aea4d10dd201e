"""What multiplicative noise of mean 1 does to variances, in closed form.

Noise n multiplies x, with `E[n] = 1` and `Var[n] = noise_variance`, independently for every element. Only the first two moments
matter here, so that dropout and Uout of the same variance of noise do the same.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._checks import Scalar, check_float, check_number
from jaxnorm.diagnostics._variances import ratio_of
from jaxnorm.statistics.variance_shift import second_moment_of_noise


def dropout_noise_variance(rate: Scalar) -> Any:
    """Returns the variance of dropout's noise, by which x is multiplied.

    `rate / (1 - rate)`: of `jaxnorm.dropout`, and of `jaxnorm.gaussian_dropout` of the same rate, which is made so.

    Args:
      rate: probability of dropping, in [0, 1); a number or an array, traced or not.

    Returns:
      The variance, a number for a number.

    Raises:
      ValueError: if a concrete rate is outside [0, 1).
      TypeError: if rate is no number.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 2014, section 10, https://jmlr.org/papers/v15/srivastava14a.html.

    Example:
      >>> from jaxnorm.diagnostics import dropout_noise_variance
      >>> dropout_noise_variance(0.5)
      1.0
    """
    check_number("rate", rate, low=0, high=1, open_high=True)
    return rate / (1 - rate)


def uniform_noise_variance(beta: Scalar) -> Any:
    """Returns the variance of the noise of uniform dropout (Uout), by which x is multiplied.

    `beta^2 / 3`: that of dropout of the rate `beta^2 / (3 + beta^2)`.

    Args:
      beta: half width of the noise, in [0, 1]; a number or an array, traced or not.

    Returns:
      The variance, a number for a number.

    Raises:
      ValueError: if a concrete beta is outside [0, 1].
      TypeError: if beta is no number.

    References:
      Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
      https://arxiv.org/abs/1801.05134.

    Example:
      >>> from jaxnorm.diagnostics import dropout_noise_variance, uniform_noise_variance
      >>> uniform_noise_variance(1.0) == dropout_noise_variance(0.25)
      True
    """
    check_number("beta", beta, low=0, high=1)
    return beta**2 / 3


def noisy_variance(mean: Scalar, var: Scalar, noise_variance: Scalar) -> jax.Array:
    """Returns the variance of a variable that noise of mean 1 multiplies, exactly.

    `Var[n x] = var + (mean^2 + var) noise_variance`.

    Args:
      mean: that of x, a number or an array, traced or not.
      var: variance of x, at least 0, likewise.
      noise_variance: of `dropout_noise_variance` or `uniform_noise_variance`, at least 0, likewise.

    Returns:
      The variance, of the shape that all three broadcast to.

    Raises:
      ValueError: if a concrete variance is below 0, or a number is not finite.
      TypeError: if one of them is no real number.

    References:
      Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
      https://arxiv.org/abs/1801.05134.

    Example:
      >>> from jaxnorm.diagnostics import dropout_noise_variance, noisy_variance
      >>> float(noisy_variance(1.0, 1.0, dropout_noise_variance(0.5)))
      3.0
    """
    _check(mean=mean, var=var, noise_variance=noise_variance)
    return jnp.asarray(var + (jnp.square(mean) + var) * noise_variance)


def noisy_dense_variance(kernel: jax.Array, second_moment: jax.Array, var: jax.Array, noise_variance: Scalar) -> jax.Array:
    """Returns the variance of the outputs of a linear layer whose inputs noise of mean 1 multiplies, exactly.

    `Var[sum_i w_i n_i x_i] = Var[sum_i w_i x_i] + noise_variance sum_i w_i^2 E[x_i^2]`, however correlated the x_i are, as long
    as the noise of each is its own.

    Args:
      kernel: weights of a dense layer or a convolution, `[..., C / groups, F]`.
      second_moment: `E[x_i^2]` of the inputs without noise, `[C]`. (Of padding a convolution's is 0: there noise adds less.)
      var: the outputs' variance without noise, `[F]`.
      noise_variance: of `dropout_noise_variance` or `uniform_noise_variance`, at least 0; a number or a traced scalar.

    Returns:
      The variance, `[F]`, in float32 or wider.

    Raises:
      ValueError: if shapes do not fit together; if a concrete variance is below 0.
      TypeError: if arrays hold no real floating point numbers, or noise_variance is no number.

    References:
      Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
      https://arxiv.org/abs/1801.05134, without its assumption that all inputs are alike.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.diagnostics import noisy_dense_variance
      >>> print(noisy_dense_variance(jnp.array([[1.0], [2.0]]), jnp.ones(2), jnp.ones(1), 1.0))
      [6.]
    """
    check_float("var", var)
    _check(var=var, noise_variance=noise_variance)
    return var + noise_variance * second_moment_of_noise(kernel, second_moment, var.shape, "var").astype(var.dtype)


def li_shift_ratio(mean: Scalar, var: Scalar, noise_variance: Scalar) -> jax.Array:
    """Returns the variance in inference over that in training, for noise right before a batch norm (Li et al., case (a)).

    `var / (var + (mean^2 + var) noise_variance)`: for dropout that keeps with probability p the paper's equation 8, `v / ((c^2 +
    v) / p - c^2)`, for Uout at a mean of 0 its equation 15, `3 / (3 + beta^2)`.

    Args:
      mean: that of x, a number or an array, traced or not.
      var: variance of x, at least 0, likewise.
      noise_variance: of `dropout_noise_variance` or `uniform_noise_variance`, at least 0, likewise.

    Returns:
      The ratio, in [0, 1], of the shape that all three broadcast to; 1 where noise has nothing to multiply.

    Raises:
      ValueError: as `noisy_variance`.
      TypeError: as `noisy_variance`.

    References:
      Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
      https://arxiv.org/abs/1801.05134.

    Example:
      The positive part of a standard normal variable has mean 0.3989 and variance 0.3408.

      >>> from jaxnorm.diagnostics import dropout_noise_variance, li_shift_ratio, uniform_noise_variance
      >>> round(float(li_shift_ratio(0.3989, 0.3408, dropout_noise_variance(0.5))), 4)
      0.4054
      >>> round(float(li_shift_ratio(0.0, 1.0, uniform_noise_variance(0.1))), 4)
      0.9967
    """
    return ratio_of(jnp.asarray(var), noisy_variance(mean, var, noise_variance))


def li_dense_shift_ratio(kernel: jax.Array, mean: Scalar, var: Scalar, correlation: Scalar, noise_variance: Scalar) -> jax.Array:
    """Returns the variance in inference over that in training, for noise before a dense layer before a batch norm (case (b)).

    `(v + v rho (K - 1)) / (v + (c^2 + v) noise_variance + v rho (K - 1))` with `K = (sum_i w_i)^2 / sum_i w_i^2`: the paper's
    equation 14, where K is written `d cos^2(theta)`. It takes all inputs for alike: mean c, variance v, correlation rho of every
    two; `noisy_dense_variance` does not.

    Args:
      kernel: `[C, F]`.
      mean: c, a number or a traced scalar.
      var: v, at least 0, likewise.
      correlation: rho, in [-1, 1], likewise.
      noise_variance: of `dropout_noise_variance` or `uniform_noise_variance`, at least 0, likewise.

    Returns:
      The ratio, `[F]`; without correlation it is `li_shift_ratio`.

    Raises:
      ValueError: if kernel is no matrix; if a concrete number is out of range.
      TypeError: if kernel holds no real floating point numbers, or another argument is no real number.

    References:
      Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
      https://arxiv.org/abs/1801.05134.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.diagnostics import li_dense_shift_ratio
      >>> print(li_dense_shift_ratio(jnp.array([[1.0], [2.0]]), 0.0, 1.0, 0.0, 1.0))
      [0.5]
    """
    kernel = check_float("kernel", kernel)
    if kernel.ndim != 2:
        raise ValueError(f"kernel must be [C, F], got shape {list(kernel.shape)}")
    check_number("correlation", correlation, low=-1, high=1)
    alignment = jnp.square(jnp.sum(kernel, 0)) / jnp.sum(jnp.square(kernel), 0)
    together = var * correlation * (alignment - 1)
    return ratio_of(var + together, noisy_variance(mean, var, noise_variance) + together)


def _check(**numbers: Scalar) -> None:
    for name, number in numbers.items():
        check_number(name, number, low=-float("inf") if name == "mean" else 0)
