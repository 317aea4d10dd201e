"""Variational dense layers: Gaussian noise on the weights, whose amount is learned, and which prunes them.

As of variational dropout, the noise is a posterior whose divergence from a prior, the KL, is returned beside y, in nats, and
`loss = mean(nll) + (sum of the KLs of all layers) / N`. The weights are not drawn, but what they make of y, for each example anew
(local reparameterization).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._axes import outer_sharding
from jaxnorm._checks import (
    NOISE_BITS,
    Scalar,
    check_amount_shape,
    check_bits,
    check_dtype,
    check_float,
    check_key,
    check_number,
    check_output_dtype,
    check_scalar,
    check_shape,
    check_size,
    check_type,
)
from jaxnorm._dropout.dense import checked_dense, dense, linear
from jaxnorm._dropout.divergence import Divergence, total_divergence
from jaxnorm._dropout.variational import logit_of_rate
from jaxnorm._noise import Draw, NoiseKind, draw_again, gaussian, normal
from jaxnorm._types import SparseVariationalDenseParams, VariationalDenseParams, widest_dtype

_LARGEST = 8.0  # log alpha of a weight, and -8 the smallest: beyond, its divergence has no gradient
_TINY = 1e-8  # added to a squared mean, of which a logarithm is taken


def init_variational_dense(
    key: jax.Array,
    in_features: int,
    out_features: int,
    *,
    rate: float = 0.1,
    shared: bool = False,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> VariationalDenseParams:
    """Makes the parameters of a `variational_dense` layer.

    The kernel is LeCun's, normal of variance `1 / C`, the bias 0, and the noise to begin with that of Gaussian DropConnect at
    this rate: `alpha = rate / (1 - rate)`.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      in_features: number of inputs, C.
      out_features: number of outputs, F.
      rate: between 0 and 1, neither included.
      shared: whether all weights have one alpha, instead of their own.
      use_bias: whether there is a bias.
      param_dtype: type of the parameters.

    Returns:
      The parameters.

    Raises:
      ValueError: if a number of features is below 1, or rate is not between 0 and 1.
      TypeError: if a number of features is no int, rate no number, param_dtype no type of floating point numbers, or key no key.

    References:
      Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", NIPS 2015,
      https://arxiv.org/abs/1506.02557.

    Example:
      >>> import jax, jaxnorm
      >>> params = jaxnorm.init_variational_dense(jax.random.key(0), 4, 3, shared=True)
      >>> params.kernel.shape, params.log_alpha.shape
      ((4, 3), ())
    """
    start = variational_dense_start(in_features, out_features, rate=rate, shared=shared)
    return VariationalDenseParams(**_made(start, key, use_bias, param_dtype))


def variational_dense(
    key: jax.Array,
    params: VariationalDenseParams,
    x: jax.Array,
    *,
    divergence: Divergence = "fit",
    bits: int = 16,
    dtype: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """A dense layer with Gaussian noise on its weights, whose amount is learned (type B, by local reparameterization).

    Training: `y = x W + bias`, `W ~ N(kernel, alpha kernel^2)`, anew for every example: drawn as what it makes of y,
    `y ~ N(x kernel + bias, x^2 (alpha kernel^2))`, and the divergence of W from a log-uniform prior, summed over the weights.
    Inference: `y = x kernel + bias`, its expectation.

    The local reparameterization draws a number for each output of an example, not for each weight, and the gradient of weights
    varies less than with one W for the batch. An example is a vector of features: of `[B, T, C]` every position has a draw of its
    own. The bias has no noise. A training step takes seven products of matrices, where a dense layer's takes three.

    The loss is `mean(nll) + (sum of the KLs) / N` with N examples in the training set, and what is said of the KL of
    `variational_dropout` holds here. For the gradient the parameters, x and the key are kept.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      params: kernel, bias, which may be None, and the logarithm of alpha: a scalar, or of the kernel's shape, or with 1 on an
        axis that shares one.
      x: array of floating point numbers, `[..., C]`.
      divergence: how the KL is computed: "fit", "exact" or "cubic", as in `variational_dropout`.
      bits: random bits of which a normal number is made: 16 or 32, as in `gaussian_dropout`.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of shape `[..., F]`, and the KL in nats, `[]`, in float32 or wider.

    Raises:
      ValueError: if a parameter does not fit x or the kernel, if divergence or bits is none of those, or if key is an array of
        several keys.
      TypeError: if params is not VariationalDenseParams; if a parameter or x does not hold real floating point numbers; if dtype
        is no type of them, bits no int, or key no key.

    References:
      Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", NIPS 2015,
      https://arxiv.org/abs/1506.02557.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.VariationalDenseParams(2 * jnp.ones((3, 1)), jnp.ones(1), jnp.log(jnp.full((3, 1), 0.25)))
      >>> y, kl = jaxnorm.variational_dense(jax.random.key(0), params, jnp.ones((100_000, 3)))
      >>> print(f"mean {y.mean():.1f}, variance {y.var():.1f}, KL {kl:.2f}")
      mean 7.0, variance 3.0, KL 3.46
    """
    return _sampled(VariationalDenseParams, "log_alpha", key, params, x, divergence, bits, dtype)


def init_sparse_variational_dense(
    key: jax.Array,
    in_features: int,
    out_features: int,
    *,
    log_var: float = -10.0,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> SparseVariationalDenseParams:
    """Makes the parameters of a `sparse_variational_dense` layer.

    The kernel is LeCun's, normal of variance `1 / C`, the bias 0, and the weights have next to no noise to begin with,
    `Var[W] = exp(log_var)`: weights that are pruned before they have learned anything stay so.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      in_features: number of inputs, C.
      out_features: number of outputs, F.
      log_var: the logarithm of the variance of every weight.
      use_bias: whether there is a bias.
      param_dtype: type of the parameters.

    Returns:
      The parameters.

    Raises:
      ValueError: if a number of features is below 1, or log_var is NaN or infinity.
      TypeError: if a number of features is no int, log_var no number, param_dtype no type of floating point numbers, or key no
        key.

    References:
      Molchanov, Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks", ICML 2017,
      https://arxiv.org/abs/1701.05369.

    Example:
      >>> import jax, jaxnorm
      >>> params = jaxnorm.init_sparse_variational_dense(jax.random.key(0), 4, 2)
      >>> params.log_var[0]
      Array([-10., -10.], dtype=float32)
    """
    start = sparse_variational_dense_start(in_features, out_features, log_var=log_var)
    return SparseVariationalDenseParams(**_made(start, key, use_bias, param_dtype))


def sparse_variational_dense(
    key: jax.Array,
    params: SparseVariationalDenseParams,
    x: jax.Array,
    *,
    divergence: Divergence = "fit",
    bits: int = 16,
    dtype: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """A dense layer with learned Gaussian noise on its weights, which prunes itself (sparse variational dropout).

    Training: `y = x W + bias`, `W ~ N(kernel, exp(log_var))`, anew for every example: drawn as what it makes of y,
    `y ~ N(x kernel + bias, x^2 exp(log_var))`, and the divergence of W from a log-uniform prior, summed over the weights.
    Inference: `sparse_variational_dense_mean`.

    It is `variational_dense` with `log alpha = log_var - log(kernel^2)`: learned as a variance, and not as a factor of the mean,
    the noise has gradients of little variance, and alpha may grow without bound. A weight of which it is above 20
    (`log alpha > 3`) is noise, and inference leaves it out.

    The loss is `mean(nll) + (sum of the KLs) / N` with N examples in the training set, the sum best with a factor that rises
    from 0 to 1 over the first epochs. Of the KLs of `variational_dropout`, "fit" and "exact" are meant. That of a weight has no
    gradient for a log alpha beyond -8 or 8, and `1e-8` is added to `kernel^2`. For the gradient the parameters, x and the key are
    kept.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      params: kernel, bias, which may be None, and the logarithm of the weights' variances.
      x: array of floating point numbers, `[..., C]`.
      divergence: how the KL is computed: "fit", "exact" or "cubic", as in `variational_dropout`.
      bits: random bits of which a normal number is made: 16 or 32, as in `gaussian_dropout`.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of shape `[..., F]`, and the KL in nats, `[]`, in float32 or wider.

    Raises:
      ValueError: as `variational_dense`.
      TypeError: if params is not SparseVariationalDenseParams; else as `variational_dense`.

    References:
      Molchanov, Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks", ICML 2017,
      https://arxiv.org/abs/1701.05369.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.SparseVariationalDenseParams(jnp.ones((3, 1)), jnp.ones(1), jnp.zeros((3, 1)))
      >>> y, kl = jaxnorm.sparse_variational_dense(jax.random.key(0), params, jnp.ones((100_000, 3)))
      >>> print(f"mean {y.mean():.1f}, variance {y.var():.1f}, KL {kl:.2f}")
      mean 4.0, variance 3.0, KL 1.29
    """
    return _sampled(SparseVariationalDenseParams, "log_var", key, params, x, divergence, bits, dtype)


def sparse_variational_dense_mean(
    params: SparseVariationalDenseParams, x: jax.Array, *, threshold: Scalar = 3.0, dtype: Any = None
) -> jax.Array:
    """A sparse variational dense layer without its noise, and without the weights that are no more than noise.

    Inference with `sparse_variational_dense`: `y = x W + bias` with `W = kernel` where `log alpha <= threshold`, else 0;
    `log alpha = log_var - log(kernel^2 + 1e-8)`.

    Args:
      params: kernel, bias, which may be None, and the logarithm of the weights' variances.
      x: array of floating point numbers, `[..., C]`.
      threshold: of log alpha, above which a weight is left out; infinity for none. A number or a traced scalar; a traced NaN
        leaves none out.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of shape `[..., F]`.

    Raises:
      ValueError: if a parameter does not fit x or the kernel; if threshold is NaN or an array.
      TypeError: if params is not SparseVariationalDenseParams; if a parameter or x does not hold real floating point numbers; if
        threshold is no number, or dtype no type of floating point numbers.

    References:
      Molchanov, Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks", ICML 2017,
      https://arxiv.org/abs/1701.05369.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.SparseVariationalDenseParams(jnp.array([[2.0], [0.1]]), None, jnp.zeros((2, 1)))
      >>> jaxnorm.sparse_variational_dense_mean(params, jnp.ones((1, 2)))
      Array([[2.]], dtype=float32)
    """
    params, x = _checked(SparseVariationalDenseParams, "log_var", params, x)
    check_scalar("threshold", threshold, low=-math.inf, infinite=True)
    log_alpha = _log_alpha(params)
    pruned = log_alpha > jnp.asarray(threshold).astype(log_alpha.dtype)
    kernel = jnp.where(pruned, np.zeros((), params.kernel.dtype), params.kernel)
    return linear(kernel, params.bias, x, dtype=check_output_dtype(dtype, x))


def dense_divergence(params: VariationalDenseParams | SparseVariationalDenseParams, divergence: Divergence) -> jax.Array:
    """Returns the KL of a dense layer."""
    type_b = isinstance(params, VariationalDenseParams)
    log_alpha = params.log_alpha if type_b else jnp.clip(_log_alpha(params), -_LARGEST, _LARGEST)
    return total_divergence(log_alpha, params.kernel.shape, divergence)


def _log_alpha(params: SparseVariationalDenseParams) -> jax.Array:
    """Returns the logarithm of alpha of each weight."""
    wide = widest_dtype(params.kernel, params.log_var)
    return params.log_var.astype(wide) - jnp.log(jnp.square(params.kernel.astype(wide)) + _TINY)


def variational_dense_start(
    inputs: int, outputs: int, *, rate: float, shared: bool
) -> dict[str, tuple[Callable[..., jax.Array], tuple[int, ...]]]:
    """Returns for each parameter of a variational dense layer what makes it, `(key, shape, dtype)`, and its shape."""
    start = _dense_start(inputs, outputs)
    log_alpha = jax.nn.initializers.constant(logit_of_rate(rate))
    return {**start, "log_alpha": (log_alpha, () if shared else start["kernel"][1])}


def sparse_variational_dense_start(
    inputs: int, outputs: int, *, log_var: float
) -> dict[str, tuple[Callable[..., jax.Array], tuple[int, ...]]]:
    """Returns for each parameter of a sparse variational dense layer what makes it, `(key, shape, dtype)`, and its shape."""
    start = _dense_start(inputs, outputs)
    check_number("log_var", log_var, low=-math.inf)
    return {**start, "log_var": (jax.nn.initializers.constant(log_var), start["kernel"][1])}


def _dense_start(inputs: Any, outputs: Any) -> dict[str, tuple[Callable[..., jax.Array], tuple[int, ...]]]:
    shape = check_size("in_features", inputs), check_size("out_features", outputs)
    return {"kernel": (jax.nn.initializers.lecun_normal(), shape), "bias": (jax.nn.initializers.zeros, shape[1:])}


def _made(start: Any, key: jax.Array, use_bias: bool, param_dtype: Any) -> dict[str, Any]:
    key, known = check_key(key), check_dtype("param_dtype", param_dtype)
    made = {name: initializer(key, shape, known) for name, (initializer, shape) in start.items()}  # one of them draws
    return made if use_bias else {**made, "bias": None}


def _checked(kind: Any, amount: str, params: Any, x: Any) -> tuple[Any, jax.Array]:
    """Returns the parameters of a dense layer and x as arrays, or raises unless they fit; `amount` names that of the noise."""
    check_type("params", params, kind)
    kernel, bias, x = checked_dense("params.kernel", params.kernel, "params.bias", params.bias, x)
    noise = check_float(f"params.{amount}", getattr(params, amount))
    if kind is VariationalDenseParams:
        check_amount_shape(f"params.{amount}", noise, kernel.shape)
    else:
        check_shape(f"params.{amount}", noise, kernel.shape, "that of params.kernel")
    return kind(kernel, bias, noise), x


def _sampled(
    kind: Any, amount: str, key: Any, params: Any, x: Any, divergence: Divergence, bits: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Checks the arguments of a dense layer with noise, and returns y and the KL."""
    key = check_key(key)
    params, x = _checked(kind, amount, params, x)
    bits, dtype = check_bits(bits, NOISE_BITS), check_output_dtype(dtype, x)
    kl = dense_divergence(params, divergence)
    return _sampled_dense(key, params, x, bits=bits).astype(dtype), kl


@functools.partial(jax.jit, static_argnames=("bits",))
def _sampled_dense(key: jax.Array, params: Any, x: jax.Array, *, bits: int) -> jax.Array:
    size = (*x.shape[:-1], params.kernel.shape[1]), outer_sharding(x, params.kernel, (1,))
    kind = _TYPE_B if isinstance(params, VariationalDenseParams) else _SPARSE
    return draw_again(key, (params, x), np.ones((), widest_dtype(x, *params)), kind, (size,), bits)


def _with_variance(variance: Callable[[Any], jax.Array]) -> NoiseKind:
    """Returns the noise of weights of which this function of the parameters is the variance, as it is in the sums of them."""

    def apply(draw: Draw, given: tuple[Any, jax.Array], unit: jax.Array) -> jax.Array:
        params, x = jax.tree.map(lambda part: part.astype(unit.dtype), given)
        std = _root(dense(variance(params), None, jnp.square(x)))
        return dense(params.kernel, params.bias, x) + std * normal(draw, unit)

    return NoiseKind(gaussian.prepare, apply)


def _root(var: jax.Array) -> jax.Array:
    """Returns the square root, with derivatives of 0 where there is no variance."""
    some = var > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, var, 1)), 0 * var)


_TYPE_B = _with_variance(lambda params: jnp.exp(params.log_alpha) * jnp.square(params.kernel))
_SPARSE = _with_variance(lambda params: jnp.exp(params.log_var))
