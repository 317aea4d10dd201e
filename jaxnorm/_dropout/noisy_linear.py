"""Noisy linear layers: dense layers with learned Gaussian noise on their weights."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._axes import sharding_along
from jaxnorm._checks import (
    NOISE_BITS,
    check_bits,
    check_dtype,
    check_key,
    check_output_dtype,
    check_shape,
    check_size,
    check_type,
)
from jaxnorm._dropout.dense import checked_dense, dense, linear
from jaxnorm._noise import Draw, NoiseKind, draw_again, gaussian, normal
from jaxnorm._types import NoisyLinearParams, widest_dtype

_FACTORISED_STD = 0.5  # over the root of the number of inputs
_INDEPENDENT_STD = 0.017


def init_noisy_linear(
    key: jax.Array,
    in_features: int,
    out_features: int,
    *,
    factorised: bool = True,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> NoisyLinearParams:
    """Makes the parameters of a `noisy_linear` layer.

    Means are drawn evenly between `-b` and `b`. Factorised: `b = 1 / sqrt(C)` and deviations are `0.5 / sqrt(C)`, with C inputs;
    else `b = sqrt(3 / C)` and deviations are 0.017. (For the bias, public code for factorised noise has the number of outputs
    in the place of C.)

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      in_features: number of inputs, C.
      out_features: number of outputs, F.
      factorised: for which noise: as in `noisy_linear`.
      use_bias: whether there is a bias.
      param_dtype: type of the parameters.

    Returns:
      The parameters.

    Raises:
      ValueError: if a number of features is below 1.
      TypeError: if a number of features is no int, or param_dtype no type of floating point numbers, or key no key.

    References:
      Fortunato, Azar, Piot, Menick, Osband, Graves, Mnih, Munos, Hassabis, Pietquin, Blundell, Legg, "Noisy networks for
      exploration", ICLR 2018, section 3.2, https://arxiv.org/abs/1706.10295.

    Example:
      >>> import jax, jaxnorm
      >>> params = jaxnorm.init_noisy_linear(jax.random.key(0), 4, 3)
      >>> params.kernel.shape, params.bias_std
      ((4, 3), Array([0.25, 0.25, 0.25], dtype=float32))
    """
    inputs, outputs = check_size("in_features", in_features), check_size("out_features", out_features)
    of_kernel, of_bias = jax.random.split(check_key(key))
    known = check_dtype("param_dtype", param_dtype)
    start = noisy_linear_start(inputs, outputs, factorised=factorised)

    def made(name: str, key: jax.Array) -> jax.Array:
        initializer, shape = start[name]
        return initializer(key, shape, known)

    kernel, kernel_std = made("kernel", of_kernel), made("kernel_std", of_kernel)
    if not use_bias:
        return NoisyLinearParams(kernel, None, kernel_std, None)
    return NoisyLinearParams(kernel, made("bias", of_bias), kernel_std, made("bias_std", of_bias))


def noisy_linear(
    key: jax.Array,
    params: NoisyLinearParams,
    x: jax.Array,
    *,
    factorised: bool = True,
    bits: int = 16,
    dtype: Any = None,
) -> jax.Array:
    """A dense layer with learned Gaussian noise on its weights, by which an agent explores (NoisyNet).

    Training: `y = x (kernel + kernel_std e) + bias + bias_std d`, with one draw for all examples. Independent: e and d are
    standard normal numbers, one for each weight. Factorised: `e_ij = f(a_i) f(b_j)` and `d_j = f(b_j)` with standard normal a
    and b, one for each input and each output, and `f(a) = sign(a) sqrt(|a|)`, so that `Var[e] = 2 / pi`, `Var[d] = sqrt(2 / pi)`.
    Inference: `noisy_linear_mean`.

    For the gradient the parameters, x and the key are kept.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      params: means and standard deviations; the biases may be None.
      x: array of floating point numbers, `[..., C]`.
      factorised: whether a weight's noise is the product of one for its input and one for its output.
      bits: random bits of which a normal number is made: 16 or 32, as in `gaussian_dropout`.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of shape `[..., F]`.

    Raises:
      ValueError: if a parameter does not fit x or the others, if bits is another number, or if key is an array of several keys.
      TypeError: if params is not NoisyLinearParams; if a parameter or x does not hold real floating point numbers; if dtype is no
        type of them, bits no int, or key no key.

    References:
      Fortunato, Azar, Piot, Menick, Osband, Graves, Mnih, Munos, Hassabis, Pietquin, Blundell, Legg, "Noisy networks for
      exploration", ICLR 2018, https://arxiv.org/abs/1706.10295.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_noisy_linear(jax.random.key(0), 4, 3)
      >>> jaxnorm.noisy_linear(jax.random.key(1), params, jnp.ones((2, 4))).shape
      (2, 3)
    """
    key = check_key(key)
    params, x = _checked_noisy(params, x)
    bits, dtype = check_bits(bits, NOISE_BITS), check_output_dtype(dtype, x)
    return _noisy_linear(key, params, x, factorised=bool(factorised), bits=bits).astype(dtype)


def noisy_linear_mean(params: NoisyLinearParams, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    """A noisy linear layer without its noise.

    Inference with `noisy_linear`: `y = x kernel + bias`, the expectation of its output in training.

    Args:
      params: means and standard deviations, of which only the means count.
      x: array of floating point numbers, `[..., C]`.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of shape `[..., F]`.

    Raises:
      ValueError: if a parameter does not fit x or the others.
      TypeError: if params is not NoisyLinearParams; if a parameter or x does not hold real floating point numbers; if dtype is no
        type of them.

    References:
      Fortunato, Azar, Piot, Menick, Osband, Graves, Mnih, Munos, Hassabis, Pietquin, Blundell, Legg, "Noisy networks for
      exploration", ICLR 2018, https://arxiv.org/abs/1706.10295.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.NoisyLinearParams(2 * jnp.ones((3, 1)), jnp.ones(1), jnp.ones((3, 1)), jnp.ones(1))
      >>> jaxnorm.noisy_linear_mean(params, jnp.ones((1, 3)))
      Array([[7.]], dtype=float32)
    """
    params, x = _checked_noisy(params, x)
    return linear(params.kernel, params.bias, x, dtype=check_output_dtype(dtype, x))


def noisy_linear_start(inputs: int, outputs: int, *, factorised: bool) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Returns for each parameter of a noisy linear layer what makes it, `(key, shape, dtype)`, and its shape."""
    bound = 1 / math.sqrt(inputs) if factorised else math.sqrt(3 / inputs)
    std = jax.nn.initializers.constant(_FACTORISED_STD / math.sqrt(inputs) if factorised else _INDEPENDENT_STD)

    def mean(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.nn.initializers.uniform(2 * bound)(key, shape, dtype) - np.asarray(bound, dtype)

    of_kernel, of_bias = (inputs, outputs), (outputs,)
    return {"kernel": (mean, of_kernel), "bias": (mean, of_bias), "kernel_std": (std, of_kernel), "bias_std": (std, of_bias)}


def _checked_noisy(params: Any, x: Any) -> tuple[NoisyLinearParams, jax.Array]:
    """Returns the parameters and x as arrays, or raises unless they fit each other."""
    check_type("params", params, NoisyLinearParams)
    kernel, bias, x = checked_dense("params.kernel", params.kernel, "params.bias", params.bias, x)
    kernel_std, bias_std, _ = checked_dense("params.kernel_std", params.kernel_std, "params.bias_std", params.bias_std, x)
    check_shape("params.kernel_std", kernel_std, kernel.shape, "that of params.kernel")
    if (bias is None) != (bias_std is None):
        raise ValueError(f"params.bias and params.bias_std must both be there, or neither, got {bias!r} and {bias_std!r}")
    return NoisyLinearParams(kernel, bias, kernel_std, bias_std), x


@functools.partial(jax.jit, static_argnames=("factorised", "bits"))
def _noisy_linear(key: jax.Array, params: NoisyLinearParams, x: jax.Array, *, factorised: bool, bits: int) -> jax.Array:
    kernel = params.kernel
    rows, columns = ((kernel.shape[axis : axis + 1], sharding_along(kernel, (axis,))) for axis in (0, 1))
    whole = (kernel.shape, sharding_along(kernel, (0, 1)))
    kind, sizes = (_FACTORISED, (rows, columns)) if factorised else (_INDEPENDENT, (whole, columns))
    return draw_again(key, (params, x), np.ones((), widest_dtype(x, *params)), kind, sizes, bits)


def _noisy_dense(params: NoisyLinearParams, x: jax.Array, of_kernel: jax.Array, of_bias: jax.Array) -> jax.Array:
    def noisy(mean: jax.Array, std: jax.Array, noise: jax.Array) -> jax.Array:
        return mean.astype(noise.dtype) + std.astype(noise.dtype) * noise

    bias = None if params.bias is None or params.bias_std is None else noisy(params.bias, params.bias_std, of_bias)
    return dense(noisy(params.kernel, params.kernel_std, of_kernel), bias, x.astype(of_kernel.dtype))


def _with_independent_noise(first: Draw, second: Draw, given: tuple[NoisyLinearParams, jax.Array], std: jax.Array) -> jax.Array:
    return _noisy_dense(*given, normal(first, std), normal(second, std))


def _with_factorised_noise(first: Draw, second: Draw, given: tuple[NoisyLinearParams, jax.Array], std: jax.Array) -> jax.Array:
    of_inputs, of_outputs = (_signed_root(normal(draw, std)) for draw in (first, second))
    return _noisy_dense(*given, of_inputs[:, None] * of_outputs[None], of_outputs)


def _signed_root(a: jax.Array) -> jax.Array:
    return jnp.sign(a) * jnp.sqrt(jnp.abs(a))


_INDEPENDENT, _FACTORISED = (NoiseKind(gaussian.prepare, apply) for apply in (_with_independent_noise, _with_factorised_noise))
