"""Rates that a network sets itself: concrete dropout, whose rate is learned, and standout, where each unit has its own."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import canonical_axes, count_of, noise_shape
from jaxnorm._checks import (
    DECISION_BITS,
    NOISE_BITS,
    Scalar,
    check_bits,
    check_dtype,
    check_float,
    check_key,
    check_like,
    check_number,
    check_scalar,
    check_shape,
    check_type,
    is_known_to_be,
)
from jaxnorm._dropout.variational import logit_of_rate
from jaxnorm._noise import Draw, NoiseKind, amount_within, decision, multiply_noise, times
from jaxnorm._types import ConcreteDropoutParams, StandoutParams, wide_dtype, widest_dtype

_LARGEST = 80.0  # logit of which 1 / (1 - rate) is finite in float32


def init_concrete_dropout(*, rate: float = 0.1, param_dtype: Any = jnp.float32) -> ConcreteDropoutParams:
    """Makes the parameter of `concrete_dropout`.

    Args:
      rate: the probability of dropping to begin with, between 0 and 1, neither included.
      param_dtype: type of the parameter.

    Returns:
      The parameter.

    Raises:
      ValueError: if rate is not between 0 and 1.
      TypeError: if rate is no number, or param_dtype no type of floating point numbers.

    References:
      Gal, Hron, Kendall, "Concrete dropout", NIPS 2017, https://arxiv.org/abs/1705.07832.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_concrete_dropout(rate=0.5)
      ConcreteDropoutParams(logit=Array(0., dtype=float32))
    """
    return ConcreteDropoutParams(jnp.asarray(logit_of_rate(rate), check_dtype("param_dtype", param_dtype)))


def concrete_dropout(
    key: jax.Array,
    params: ConcreteDropoutParams,
    x: jax.Array,
    *,
    temperature: Scalar = 0.1,
    broadcast_dims: Sequence[int] = (),
    kernel: Any = None,
    length_scale: float = 0.01,
    bits: int = 16,
) -> tuple[jax.Array, jax.Array]:
    """Dropout whose rate is learned, by decisions that are not quite yes or no (concrete dropout).

    Training: `y = x (1 - z) / (1 - rate)`, `z = sigmoid((logit(rate) + logit(u)) / temperature)` with uniform u, and the
    regularizer `length_scale^2 |kernel|^2 / (2 (1 - rate)) - C H`, `H = -rate log(rate) - (1 - rate) log(1 - rate)`. Inference:
    the same, several times, for a predictive distribution (`jaxnorm.uncertainty`); or the identity for its mean.

    z is above 1/2 with probability `rate` (rounded to a multiple of 2^-16 or 2^-23, as bits say), and the colder, the nearer to
    0 and 1; at every temperature y has a derivative by the rate. Its mean is not exactly x: at a rate of 0.3 and the
    temperature of 0.1 that of `1 - z` is 0.6986, and not 0.7. Gradients flow into x and the logit, none into the temperature.

    The regularizer is the KL of the weights that y meets, `kernel`, in nats. The loss is the mean of the examples', and the sum
    of the regularizers of all layers over the number N of examples in the training set,
    `loss = mean(nll) + (r_1 + r_2 + ...) / N`; of a squared error of precision tau, over `N tau / 2`. So the rate falls as N
    grows. Without a kernel the first summand is left out, for a caller who has weight decay already; it keeps weights from
    growing with their rate. The entropy counts the features of x, C, or 1 if they share a draw: with `broadcast_dims` of all
    spatial axes that is spatial concrete dropout, for which the authors' code has a temperature of 2/3.

    For the gradient the logit, x and the key are kept.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      params: the logit of the rate.
      x: array of floating point numbers, `[..., C]`.
      temperature: of the decisions, above 0; a number or a traced scalar. A traced one that is not above 0, or infinite, gives
        NaN everywhere.
      broadcast_dims: axes along which all elements share one draw, as `(1, 2)` for whole channels of `[B, H, W, C]`.
      kernel: the weights of the layer that takes y, an array of floating point numbers or a tree of them, or None.
      length_scale: of the prior of those weights, whose variance is `length_scale^-2`.
      bits: random bits an element of which u is made: 16 or 32.

    Returns:
      y of x's shape and dtype, and the regularizer, `[]`, in float32 or wider.

    Raises:
      ValueError: if x has no axis of features; if the logit is no scalar; if temperature or length_scale is an array, or below
        0, or not finite, or temperature 0; if an axis is out of range or named twice; if bits is another number; if key is an
        array of several keys.
      TypeError: if params is not ConcreteDropoutParams; if the logit, x or an array of kernel does not hold real floating point
        numbers; if bits is no int, or key no key.

    References:
      Gal, Hron, Kendall, "Concrete dropout", NIPS 2017, https://arxiv.org/abs/1705.07832. The authors' code has the factors
      `length_scale^2 / (tau N)` and `2 / (tau N)` for what is `1/2` and 1 here, and so takes the regularizer over `N tau / 2`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_concrete_dropout(rate=0.2)
      >>> y, regularizer = jaxnorm.concrete_dropout(jax.random.key(0), params, jnp.ones((10_000, 10)))
      >>> print(f"dropped {(y < 0.625).mean():.2f}, mean {y.mean():.2f}, regularizer {regularizer:.2f}")
      dropped 0.20, mean 1.00, regularizer -5.00
    """
    key = check_key(key)
    x = check_float("x", x)
    check_scalar("temperature", temperature, low=0)
    if is_known_to_be(0, temperature):
        raise ValueError(f"temperature must be above 0, got {temperature}")
    regularizer = concrete_regularizer(params, x, broadcast_dims, kernel, length_scale)
    logit, bits = jnp.asarray(params.logit), check_bits(bits, NOISE_BITS)
    wide, shared = widest_dtype(x, logit), canonical_axes("broadcast_dims", broadcast_dims, x.ndim)
    y = multiply_noise(key, (x, logit.astype(wide)), _temperature(temperature, wide), _CONCRETE, shared, bits)
    return y, regularizer


def init_standout(*, alpha: float = 1.0, beta: float = 0.0, param_dtype: Any = jnp.float32) -> StandoutParams:
    """Makes the parameters of `standout`.

    Args:
      alpha: the factor of the preactivation; with 0 every unit has the probability to keep `sigmoid(beta)`.
      beta: what is added.
      param_dtype: type of the parameters.

    Returns:
      The parameters.

    Raises:
      ValueError: if alpha or beta is not finite.
      TypeError: if alpha or beta is no number, or param_dtype no type of floating point numbers.

    References:
      Ba, Frey, "Adaptive dropout for training deep neural networks", NIPS 2013,
      https://papers.nips.cc/paper/5032-adaptive-dropout-for-training-deep-neural-networks.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_standout(beta=-1.0).beta
      Array(-1., dtype=float32)
    """
    known = check_dtype("param_dtype", param_dtype)
    for name, value in (("alpha", alpha), ("beta", beta)):
        check_number(name, value, low=-math.inf)
        if value == -math.inf:
            raise ValueError(f"{name} must be finite, got {value}")
    return StandoutParams(jnp.asarray(alpha, known), jnp.asarray(beta, known))


def standout(key: jax.Array, params: StandoutParams, preactivation: jax.Array, x: jax.Array, *, bits: int = 16) -> jax.Array:
    """Keeps a unit with a probability that its own input sets: the more active, the likelier (standout, adaptive dropout).

    Training: `y = x` with probability `keep = sigmoid(alpha preactivation + beta)`, else 0, where x is the activation that the
    layer makes of the preactivation. Inference: `standout_mean`.

    Nothing is divided by the probability to keep. It is realised as a multiple of 2^-bits (2^-23 with 32 bits), not below the
    smallest, as in `dropout`. A decision has no derivative: none flows into the preactivation, alpha or beta, but through x.
    (The network that decides shares its weights with the layer. The paper's text and one public code add beta to every weight,
    which is `beta sum(inputs)` in the place of beta; other codes add it once, as here.)

    For the gradient the preactivation and the key are kept, and no mask.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      params: alpha and beta.
      preactivation: array of floating point numbers, of x's shape. One that is NaN gives NaN.
      x: array of floating point numbers, any shape.
      bits: random bits an element that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if the preactivation has another shape than x; if alpha or beta is no scalar; if bits is another number; if key
        is an array of several keys.
      TypeError: if params is not StandoutParams; if a parameter, the preactivation or x does not hold real floating point
        numbers; if bits is no int, or key no key.

    References:
      Ba, Frey, "Adaptive dropout for training deep neural networks", NIPS 2013,
      https://papers.nips.cc/paper/5032-adaptive-dropout-for-training-deep-neural-networks.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> params, preactivation = jaxnorm.init_standout(), jnp.array([-9.0, -2.0, -1.0, 0.0, 1.0, 2.0, 9.0])
      >>> jaxnorm.standout(jax.random.key(0), params, preactivation, jnp.ones(7))
      Array([0., 0., 0., 0., 1., 1., 1.], dtype=float32)
    """
    key = check_key(key)
    params, preactivation, x = _checked_standout(params, preactivation, x)
    held = lax.stop_gradient((params, preactivation))
    unit = np.ones((), widest_dtype(x, preactivation, *params))
    return multiply_noise(key, (x, held), unit, _STANDOUT, (), check_bits(bits, DECISION_BITS))


def standout_mean(params: StandoutParams, preactivation: jax.Array, x: jax.Array) -> jax.Array:
    """Scales each unit by the probability to keep that its own input sets.

    Inference with `standout`: `y = sigmoid(alpha preactivation + beta) x`, the expectation of its output in training.

    It has every derivative, by alpha, beta and the preactivation too: `jax.lax.stop_gradient` of those takes them out.

    Args:
      params: alpha and beta.
      preactivation: array of floating point numbers, of x's shape.
      x: array of floating point numbers, any shape.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if the preactivation has another shape than x; if alpha or beta is no scalar.
      TypeError: if params is not StandoutParams; if a parameter, the preactivation or x does not hold real floating point
        numbers.

    References:
      Ba, Frey, "Adaptive dropout for training deep neural networks", NIPS 2013,
      https://papers.nips.cc/paper/5032-adaptive-dropout-for-training-deep-neural-networks.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.standout_mean(jaxnorm.init_standout(), jnp.array([-9.0, 0.0, 9.0]), jnp.ones(3)).round(3)
      Array([0. , 0.5, 1. ], dtype=float32)
    """
    params, preactivation, x = _checked_standout(params, preactivation, x)
    return times(x, _keep(params, preactivation, widest_dtype(x, preactivation, *params)))


def concrete_regularizer(
    params: ConcreteDropoutParams, x: jax.Array, broadcast_dims: Sequence[int], kernel: Any, length_scale: float
) -> jax.Array:
    """Returns the regularizer of concrete dropout, or raises unless the arguments are such."""
    check_type("params", params, ConcreteDropoutParams)
    logit = check_float("params.logit", params.logit)
    check_shape("params.logit", logit, (), "a scalar")
    check_scalar("length_scale", length_scale, low=0)
    if not x.ndim:
        raise ValueError("x must have an axis of features, got shape []")
    shared = canonical_axes("broadcast_dims", broadcast_dims, x.ndim)
    leaves = jax.tree_util.tree_leaves_with_path(kernel)
    arrays = [check_float(f"kernel{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves]
    logit = logit.astype(wide_dtype(logit.dtype))
    draws = count_of(noise_shape(x.shape, shared)[-1:], logit.dtype)
    # The logarithms of the rate and of the probability to keep, and neither of a difference from 1.
    entropy = -sum(jax.nn.sigmoid(sign * logit) * jax.nn.log_sigmoid(sign * logit) for sign in (1, -1))
    if not arrays:
        return -draws * entropy
    squares = sum(jnp.sum(jnp.square(array.astype(logit.dtype))) for array in arrays)
    return jnp.square(jnp.asarray(length_scale, logit.dtype)) / 2 * squares * (1 + jnp.exp(logit)) - draws * entropy


def _temperature(temperature: Scalar, dtype: np.dtype) -> jax.Array | np.ndarray:
    """Returns the temperature; NaN for one that is not above 0, or infinite."""
    return amount_within(temperature, dtype, lambda temperature: (temperature > 0) & (temperature < jnp.inf))


def _logistic(words: jax.Array, dtype: np.dtype) -> jax.Array:
    """Returns `logit(u)` for uniform u, an odd multiple of 2^-24: neither 0 nor 1, and 1 - u is exact."""
    u = lax.bitcast_convert_type(words >> 8 | 1, jnp.int32).astype(dtype) * np.asarray(2**-24, dtype)
    return jnp.log(u / (1 - u))


@jax.custom_jvp
def _share_kept(logit: jax.Array, noise: jax.Array, temperature: jax.Array) -> jax.Array:
    """Returns `(1 - z) / (1 - rate)`, whose derivative by the logit needs one sum over the noise, where jax's own takes three."""
    return _inverse_keep(logit) * lax.logistic(-(logit + noise) / temperature)


@_share_kept.defjvp
def _share_kept_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    logit, _, temperature = primals
    share = _share_kept(*primals)
    z = 1 - share / _inverse_keep(logit)
    return share, share * (jax.nn.sigmoid(logit) - z / temperature) * tangents[0]


def _inverse_keep(logit: jax.Array) -> jax.Array:
    return 1 + jnp.exp(jnp.minimum(logit, _LARGEST))


def _drop_by_degrees(draw: Draw, given: tuple[jax.Array, jax.Array], temperature: jax.Array) -> jax.Array:
    x, logit = given
    return times(x, _share_kept(logit, draw.numbers(functools.partial(_logistic, dtype=temperature.dtype)), temperature))


_CONCRETE = NoiseKind(lambda temperature, _: temperature, _drop_by_degrees)
"""x (1 - z) / (1 - rate), of x and the logit of the rate; the amount is the temperature."""


def _keep(params: StandoutParams, preactivation: jax.Array, dtype: np.dtype) -> jax.Array:
    alpha, beta, preactivation = (part.astype(dtype) for part in (*params, preactivation))
    return jax.nn.sigmoid(alpha * preactivation + beta)


def _keep_active(draw: Draw, given: tuple[jax.Array, tuple[StandoutParams, jax.Array]], unit: jax.Array) -> jax.Array:
    x, (params, preactivation) = given
    keep = _keep(params, preactivation, unit.dtype)
    threshold, _ = decision(keep, draw.bits)  # made here of what is kept anyway, instead of being kept; a NaN keeps
    return jnp.where(draw.below(threshold), times(x, jnp.where(jnp.isnan(keep), keep, unit)), jnp.zeros((), x.dtype))


_STANDOUT = NoiseKind(lambda unit, _: unit, _keep_active, decides=True)
"""x with a probability to keep of its own, else 0, of x and what makes the probability; the amount is 1."""


def _checked_standout(params: Any, preactivation: Any, x: Any) -> tuple[StandoutParams, jax.Array, jax.Array]:
    """Returns the arguments as arrays, or raises unless they fit each other."""
    x = check_float("x", x)
    check_type("params", params, StandoutParams)
    parts = [check_float(f"params.{name}", part) for name, part in params._asdict().items()]
    for name, part in zip(params._fields, parts, strict=True):
        check_shape(f"params.{name}", part, (), "a scalar")
    return StandoutParams(*parts), check_like("preactivation", preactivation, x), x
