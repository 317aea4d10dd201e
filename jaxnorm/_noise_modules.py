"""What the Flax modules with noise do: the one place for it, so that `jaxnorm.linen` and `jaxnorm.nnx` agree."""

import inspect
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import (
    DECISION_BITS,
    NOISE_BITS,
    Scalar,
    check_bits,
    check_decision_bits,
    check_flag,
    check_float,
    check_known_flag,
    check_number,
    is_known_to_be,
)
from jaxnorm._dropout.adaptive import concrete_dropout, concrete_regularizer, standout, standout_mean
from jaxnorm._dropout.alpha import alpha_dropout
from jaxnorm._dropout.attention import drop_key
from jaxnorm._dropout.block import cutout, drop_block
from jaxnorm._dropout.dense import drop_connect_dense, linear
from jaxnorm._dropout.elementwise import dropout, gaussian_dropout, gaussian_noise, uniform_dropout, weight_scaled
from jaxnorm._dropout.joins import fractal_join, fractal_join_mean, swapout, swapout_mean
from jaxnorm._dropout.noisy_linear import noisy_linear, noisy_linear_mean
from jaxnorm._dropout.patterns import drop_path, head_dropout, locked_dropout, spatial_dropout
from jaxnorm._dropout.pooling import max_pool_dropout, max_pool_dropout_mean
from jaxnorm._dropout.recurrent import zoneout, zoneout_mean
from jaxnorm._dropout.shake import shake_drop, shake_drop_mean, shake_shake, shake_shake_mean
from jaxnorm._dropout.tokens import patch_dropout
from jaxnorm._dropout.variational import dropout_divergence, variational_dropout
from jaxnorm._dropout.variational_dense import (
    dense_divergence,
    sparse_variational_dense,
    sparse_variational_dense_mean,
    variational_dense,
)
from jaxnorm._dropout.weights import drop_connect, embedding_dropout
from jaxnorm._modules import DrawKey, output_dtype
from jaxnorm._types import (
    ConcreteDropoutParams,
    NoisyLinearParams,
    SparseVariationalDenseParams,
    StandoutParams,
    VariationalDenseParams,
    VariationalDropoutParams,
)


def _check_noise_bits(bits: int, _: Scalar) -> None:
    """Raises unless a number of the noise can be made of so many bits."""
    check_bits(bits, NOISE_BITS)


def _check_seed_bits(bits: int, _: Scalar) -> None:
    """Raises unless something can be decided by so many bits; whether they do for the seeds of blocks, the function knows."""
    check_bits(bits, DECISION_BITS)


def _as_they_are(inputs: jax.Array) -> jax.Array:
    return inputs


def _as_scaled(inputs: jax.Array, rate: Scalar, scale: bool) -> jax.Array:
    return inputs if scale else weight_scaled(inputs, rate)


class Drawing(TypedDict):
    """Of the call of a layer: the flag, and what gives a key."""

    deterministic: bool | jax.Array
    draw_key: DrawKey


class NoiseFunction(NamedTuple):
    """A layer with noise.

    Attributes:
      function: its function, of a key, the inputs, and others that the module has as attributes of the same name.
      amount: name of the amount of noise; None if there is no such.
      check_bits: raises unless so many random bits do for this amount.
      high: the largest amount.
      open_high: whether the amount is below that.
      silent: whether there is no noise at an amount of 0.
      drops: whether an amount of 1 leaves nothing.
      inference: what there is without noise, a function of the inputs, and of others as above.
    """

    function: Callable[..., jax.Array]
    amount: str | None = "rate"
    check_bits: Callable[[int, Scalar], Any] = check_decision_bits
    high: float = 1
    open_high: bool = False
    silent: bool = True
    drops: bool = False
    inference: Callable[..., jax.Array] = _as_they_are


DROPOUT = NoiseFunction(dropout, drops=True)
GAUSSIAN_DROPOUT = NoiseFunction(gaussian_dropout, check_bits=_check_noise_bits, open_high=True)
UNIFORM_DROPOUT = NoiseFunction(uniform_dropout, "beta", _check_noise_bits)
GAUSSIAN_NOISE = NoiseFunction(gaussian_noise, "std", _check_noise_bits, high=np.inf)
ALPHA_DROPOUT = NoiseFunction(alpha_dropout, open_high=True)
SPATIAL_DROPOUT = NoiseFunction(spatial_dropout, drops=True)
LOCKED_DROPOUT = NoiseFunction(locked_dropout, drops=True)
HEAD_DROPOUT = NoiseFunction(head_dropout, drops=True)
DROP_PATH = NoiseFunction(drop_path, drops=True, inference=_as_scaled)
DROP_KEY = NoiseFunction(drop_key)
ZONEOUT = NoiseFunction(zoneout, inference=zoneout_mean)
DROP_BLOCK = NoiseFunction(drop_block, check_bits=_check_seed_bits, drops=True)
CUTOUT = NoiseFunction(cutout, amount=None)
MAX_POOL_DROPOUT = NoiseFunction(max_pool_dropout, inference=max_pool_dropout_mean)
SWAPOUT = NoiseFunction(swapout, silent=False, inference=swapout_mean)
FRACTAL_JOIN = NoiseFunction(fractal_join, silent=False, inference=fractal_join_mean)
SHAKE_DROP = NoiseFunction(shake_drop, inference=shake_drop_mean)
SHAKE_SHAKE = NoiseFunction(shake_shake, amount=None, inference=shake_shake_mean)
DROP_CONNECT = NoiseFunction(drop_connect, drops=True)
EMBEDDING_DROPOUT = NoiseFunction(embedding_dropout, drops=True)


def apply_noise(noise: NoiseFunction, module: Any, *inputs: Any, deterministic: bool | jax.Array, draw_key: DrawKey) -> jax.Array:
    """Returns what noise makes of the inputs, as the module's fields say; what there is without it where `deterministic`.

    Where the amount is known to be 0, or to leave nothing, no key is drawn.
    """
    amount = None if noise.amount is None else getattr(module, noise.amount)
    if noise.amount is not None:
        check_number(noise.amount, amount, low=0, high=noise.high, open_high=noise.open_high)
        noise.check_bits(module.bits, amount)
    deterministic = check_flag("deterministic", deterministic)

    def noisy() -> jax.Array:
        if noise.drops and is_known_to_be(1, amount):
            return jnp.zeros_like(inputs[0])
        return _with_fields(noise.function, module, draw_key(), *inputs)

    def noiseless() -> jax.Array:
        return _with_fields(noise.inference, module, *inputs)

    silent = noise.silent and is_known_to_be(0, amount)
    return noiseless() if silent else _one_of(noisy, noiseless, deterministic)


def apply_patch_dropout(
    module: Any, inputs: jax.Array, *, deterministic: bool | jax.Array, draw_key: DrawKey
) -> tuple[jax.Array, jax.Array]:
    """Returns the tokens that are kept, all where `deterministic`, and which they are; where all are, no key is drawn."""
    inputs = check_float("inputs", inputs)
    all_kept = check_known_flag("deterministic", deterministic) or is_known_to_be(0, module.rate)
    key, rate = (jax.random.key(0), 0.0) if all_kept else (draw_key(), module.rate)
    return patch_dropout(key, inputs, rate, num_prefix_tokens=module.num_prefix_tokens, ordered=module.ordered)


def drop_weights(
    noise: NoiseFunction, module: Any, *, deterministic: bool | jax.Array, draw_key: DrawKey
) -> Callable[[str, jax.Array], jax.Array]:
    """Returns what noise makes of a parameter, of its path and value: one key is drawn, and each path makes its own of it."""
    key: Any = None if deterministic is True else draw_key()

    def dropped(path: str, value: jax.Array) -> jax.Array:
        def own_key() -> jax.Array:
            return jax.random.fold_in(key, zlib.crc32(path.encode()))

        return apply_noise(noise, module, value, deterministic=deterministic, draw_key=own_key)

    return dropped


def apply_noisy_linear(
    params: NoisyLinearParams, x: jax.Array, module: Any, *, deterministic: bool | jax.Array, draw_key: DrawKey
) -> jax.Array:
    """Returns y of a noisy linear layer, without noise where `deterministic`."""
    dtype = output_dtype(module.dtype, x, *params)
    return _one_of(
        lambda: noisy_linear(draw_key(), params, x, factorised=module.factorised, bits=module.bits, dtype=dtype),
        lambda: noisy_linear_mean(params, x, dtype=dtype),
        check_flag("deterministic", deterministic),
    )


def apply_drop_connect_dense(
    kernel: jax.Array,
    bias: jax.Array | None,
    x: jax.Array,
    module: Any,
    *,
    deterministic: bool | jax.Array,
    draw_key: DrawKey,
) -> jax.Array:
    """Returns y of a dense layer whose weights are dropped for every example, or all kept where `deterministic`."""
    dtype = output_dtype(module.dtype, x, kernel, bias)
    return _one_of(
        lambda: drop_connect_dense(draw_key(), kernel, bias, x, module.rate, bits=module.bits, dtype=dtype),
        lambda: linear(kernel, bias, x, dtype=dtype),
        check_flag("deterministic", deterministic),
    )


def apply_variational_dropout(
    params: VariationalDropoutParams, inputs: jax.Array, module: Any, *, deterministic: bool | jax.Array, draw_key: DrawKey
) -> tuple[jax.Array, jax.Array]:
    """Returns y of variational dropout, without noise where `deterministic`, and the KL."""
    inputs = check_float("inputs", inputs)
    return _one_of(
        lambda: variational_dropout(draw_key(), params, inputs, divergence=module.divergence, bits=module.bits),
        lambda: (inputs, dropout_divergence(params, inputs, module.divergence)),
        check_flag("deterministic", deterministic),
    )


def apply_variational_dense(
    params: VariationalDenseParams, x: jax.Array, module: Any, *, deterministic: bool | jax.Array, draw_key: DrawKey
) -> tuple[jax.Array, jax.Array]:
    """Returns y of a dense layer with learned noise, without it where `deterministic`, and the KL."""
    dtype = output_dtype(module.dtype, x, params.kernel, params.bias)
    kind, bits = module.divergence, module.bits
    return _one_of(
        lambda: variational_dense(draw_key(), params, x, divergence=kind, bits=bits, dtype=dtype),
        lambda: (linear(params.kernel, params.bias, x, dtype=dtype), dense_divergence(params, kind)),
        check_flag("deterministic", deterministic),
    )


def apply_sparse_variational_dense(
    params: SparseVariationalDenseParams, x: jax.Array, module: Any, *, deterministic: bool | jax.Array, draw_key: DrawKey
) -> tuple[jax.Array, jax.Array]:
    """Returns y of a dense layer that prunes itself, pruned and without noise where `deterministic`, and the KL."""
    dtype = output_dtype(module.dtype, x, params.kernel, params.bias)
    kind, bits = module.divergence, module.bits

    def mean() -> tuple[jax.Array, jax.Array]:
        y = sparse_variational_dense_mean(params, x, threshold=module.threshold, dtype=dtype)
        return y, dense_divergence(params, kind)

    return _one_of(
        lambda: sparse_variational_dense(draw_key(), params, x, divergence=kind, bits=bits, dtype=dtype),
        mean,
        check_flag("deterministic", deterministic),
    )


def apply_concrete_dropout(
    params: ConcreteDropoutParams,
    inputs: jax.Array,
    kernel: Any,
    module: Any,
    *,
    deterministic: bool | jax.Array,
    draw_key: DrawKey,
) -> tuple[jax.Array, jax.Array]:
    """Returns y of concrete dropout, without noise where `deterministic`, and the regularizer."""
    inputs = check_float("inputs", inputs)
    return _one_of(
        lambda: _with_fields(concrete_dropout, module, draw_key(), params, inputs, kernel=kernel),
        lambda: (inputs, concrete_regularizer(params, inputs, module.broadcast_dims, kernel, module.length_scale)),
        check_flag("deterministic", deterministic),
    )


def apply_standout(
    params: StandoutParams,
    preactivation: jax.Array,
    x: jax.Array,
    module: Any,
    *,
    deterministic: bool | jax.Array,
    draw_key: DrawKey,
) -> jax.Array:
    """Returns what is kept of x, or its expectation where `deterministic`."""
    return _one_of(
        lambda: standout(draw_key(), params, preactivation, x, bits=module.bits),
        lambda: standout_mean(params, preactivation, x),
        check_flag("deterministic", deterministic),
    )


def _one_of(noisy: Callable[[], Any], noiseless: Callable[[], Any], deterministic: bool | jax.Array) -> Any:
    """Returns what is noisy, or what is without noise where `deterministic`; where that is known the other is not made."""
    if deterministic is True:
        return noiseless()
    y = noisy()
    if deterministic is False:
        return y
    return jax.tree.map(lambda a, b: jnp.where(deterministic, a, b), noiseless(), y)


def _with_fields(function: Callable[..., Any], module: Any, *given: Any, **named: Any) -> Any:
    """Calls a function with what is given, and its other arguments that the module has as attributes of the same name."""
    names = list(inspect.signature(function).parameters)[len(given) :]
    return function(*given, **named, **{name: getattr(module, name) for name in names if hasattr(module, name)})
