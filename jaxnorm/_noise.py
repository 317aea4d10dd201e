"""Multiplicative noise of mean 1: what a draw does to x, and the only place that does it.

A kind of noise takes from a draw the random numbers that it wants; `multiply_noise` sees to it that nothing but the key is kept
for the gradient: the numbers are drawn again where they are needed, in every mode of differentiation.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from jaxnorm._axes import noise_shape, shared_sharding
from jaxnorm._bits import random_integers, random_words, resolution
from jaxnorm._normal import DEVIATION_OF_16_BITS, standard_normal
from jaxnorm._packed_bits import has_packed_form, packed_below, packed_integers
from jaxnorm._spread_bits import spread_below

Form = Literal["cpu", "tpu", "any"]


@dataclass(frozen=True)
class Draw:
    """Random numbers for the elements of an array, drawn when they are asked for.

    Attributes:
      key: a typed key.
      shape: the shape of the array.
      sharding: its explicit sharding, or None.
      bits: random bits an element: 8, 16 or 32.
      form: whether to draw as CPUs or TPUs had best, or as is left to the compiler.
    """

    key: jax.Array
    shape: tuple[int, ...]
    sharding: NamedSharding | None
    bits: int
    form: Form

    def numbers(self, of_word: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Returns what is made of a uniform uint32 for every element; of 16 bits, of the middle of those that begin with them."""
        if self.bits == 32:
            return of_word(random_words(self.key, self.shape, self.sharding))

        def of_upper(upper: jax.Array) -> jax.Array:
            return of_word(upper << 16 | np.uint32(0x8000))

        if self.form == "cpu":
            return of_upper(packed_integers(self.key, self.shape, self.sharding))
        return random_integers(self.key, self.shape, self.bits, self.sharding, show_blocks=self.form == "any", read=of_upper)

    def below(self, threshold: jax.Array) -> jax.Array:
        """Returns True with probability `threshold / resolution(bits)`; a scalar, or an array that broadcasts to the shape."""
        if self.form != "any":
            below = packed_below if self.form == "cpu" else spread_below
            return below(self.key, threshold, self.shape, self.bits, self.sharding)
        return random_integers(self.key, self.shape, self.bits, self.sharding, show_blocks=self.form == "any") < threshold


class NoiseKind(NamedTuple):
    """A kind of noise.

    Attributes:
      prepare: from its amount and the bits of an element to what it needs of them, computed once and not for every element.
      apply: from a draw, x and what was prepared to y.
      decides: whether it takes decisions of yes or no from the draw.
    """

    prepare: Callable[[jax.Array, int], Any]
    apply: Callable[[Draw, jax.Array, Any], jax.Array]
    decides: bool = False


def used_key(key: jax.Array) -> tuple[jax.Array, Any]:
    """Returns a key's data and generator, for branches and checkpoints, in which jax_debug_key_reuse sees a key used twice.

    It does not see draws from the data. Nothing is drawn here, but it sees the key used once.
    """
    jax.random.bits(key, (0,))
    return jax.random.key_data(key), jax.random.key_impl(key)


def multiply_noise(
    key: jax.Array, x: jax.Array, amount: jax.Array | np.ndarray, kind: NoiseKind, shared: tuple[int, ...], bits: int
) -> jax.Array:
    """Returns x times noise of this kind, one draw for each element but for the `shared` axes.

    Args:
      key: a typed key.
      x: array of floating point numbers.
      amount: the kind's parameter, a scalar or an array that broadcasts to the noise; no gradient flows into it.
      kind: one of those below.
      shared: axes along which all elements share one draw.
      bits: random bits an element: 8, 16 or 32; 16 or 32 of a kind that does not decide.
    """
    return _multiply_noise(key, x, amount, kind=kind, shared=shared, bits=bits)


@functools.partial(jax.jit, static_argnames=("kind", "shared", "bits"))
def _multiply_noise(
    key: jax.Array, x: jax.Array, amount: jax.Array, *, kind: NoiseKind, shared: tuple[int, ...], bits: int
) -> jax.Array:
    data, impl = used_key(key)

    def apply(data: jax.Array, x: jax.Array, prepared: Any, *, form: Form) -> jax.Array:
        fresh = jax.random.wrap_key_data(data, impl=impl)
        return kind.apply(Draw(fresh, noise_shape(x.shape, shared), shared_sharding(x, shared), bits, form), x, prepared)

    # The compiler must not see that forward and backward draw the same, or it would keep a byte an element or more from one to
    # the other. A CPU's may see it of packed decisions: that keeps a bit, and hashing again takes longer than reading it. A TPU's
    # may see it of decisions: what hides it there also keeps them from fusing with the layers before and after.
    anywhere = jax.checkpoint(functools.partial(apply, form="any"))
    on_cpu, on_tpu = (
        jax.checkpoint(functools.partial(apply, form=form), prevent_cse=not kind.decides) for form in ("cpu", "tpu")
    )

    def after_x(data: jax.Array, x: jax.Array, prepared: Any) -> jax.Array:
        # Numbers that go through memory are not to be drawn for all layers at once, before x is there.
        return on_cpu(*lax.optimization_barrier((data, x)), prepared)

    # A part of an array of keys would be simplified into each draw in another way, and equal draws then not be seen as such.
    data = lax.optimization_barrier(data)
    operands = data, x, kind.prepare(lax.stop_gradient(amount), bits)
    forms = {"tpu": on_tpu, "default": anywhere}
    if has_packed_form(key, bits):
        through_memory = bits == 16 and not kind.decides
        forms["cpu"] = after_x if through_memory else on_cpu
    with jax.named_scope("jaxnorm.noise"):
        return lax.platform_dependent(*operands, **forms)


def _decision(keep: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Returns the threshold for a probability to keep, and the probability that it stands for. All are kept for a NaN.

    32 bits decide as `jax.random.bernoulli` does: by a multiple of 2^-23, for which `keep` itself stands. Fewer bits realise
    another probability, by which is divided, so that the expectation is exact; one above 0 keeps 1 of 2^bits at least.
    """
    steps = np.asarray(resolution(bits), keep.dtype)
    threshold = keep * steps
    if bits == 32:
        threshold, realised = jnp.ceil(threshold.astype(jnp.float32)), keep
    else:
        threshold = jnp.where(keep > 0, jnp.maximum(jnp.round(threshold), 1), threshold)
        realised = threshold / steps
    return jnp.where(jnp.isnan(keep), resolution(bits), threshold).astype(jnp.uint32), realised


def _scaled(keep: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    threshold, realised = _decision(keep, bits)
    return threshold, jnp.where(realised == 0, jnp.ones((), keep.dtype), realised)  # where none is kept, gradients are finite too


def _unscaled(keep: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    threshold, _ = _decision(keep, bits)
    return threshold, jnp.where(jnp.isnan(keep), keep, jnp.ones((), keep.dtype))


def _keep_or_drop(draw: Draw, x: jax.Array, prepared: tuple[jax.Array, jax.Array]) -> jax.Array:
    threshold, divisor = prepared
    return jnp.where(draw.below(threshold), (x.astype(divisor.dtype) / divisor).astype(x.dtype), jnp.zeros((), x.dtype))


def _gaussian(draw: Draw, x: jax.Array, std: jax.Array) -> jax.Array:
    noise = 1 + std * draw.numbers(functools.partial(standard_normal, dtype=std.dtype))
    if draw.form == "cpu" and draw.bits == 32 and x.dtype != noise.dtype:
        # XLA for CPUs, as of jax 0.12, would walk all paths from the rounding below to the hash: minutes of compilation.
        noise = lax.optimization_barrier(noise)
    return _times(x, noise)


def _uniform(draw: Draw, x: jax.Array, beta: jax.Array) -> jax.Array:
    from_0_to_1 = draw.numbers(lambda words: (words >> 9).astype(jnp.float32) * np.float32(2**-23))  # as jax.random.uniform
    return _times(x, 1 + beta * (2 * from_0_to_1 - 1).astype(beta.dtype))


def _times(x: jax.Array, noise: jax.Array) -> jax.Array:
    """Multiplies in the wider of the two types and rounds once."""
    return (x.astype(noise.dtype) * noise).astype(x.dtype)


keep_or_drop = NoiseKind(_scaled, _keep_or_drop, decides=True)
"""x / keep with probability `keep`, else 0. A NaN `keep` gives NaN everywhere."""

keep_unscaled = NoiseKind(_unscaled, _keep_or_drop, decides=True)
"""x with probability `keep`, else 0. A NaN `keep` gives NaN everywhere."""

gaussian = NoiseKind(lambda std, bits: std / DEVIATION_OF_16_BITS if bits == 16 else std, _gaussian)
"""x * n with n ~ N(1, std^2)."""

uniform = NoiseKind(lambda beta, _: beta, _uniform)
"""x * n with n ~ U(1 - beta, 1 + beta)."""
