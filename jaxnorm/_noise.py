"""Noise, most of it multiplicative and of mean 1: what a draw does to x, and the only place that does it.

A kind of noise takes from a draw the random numbers that it wants; `multiply_noise` sees to it that nothing but the key is kept
for the gradient: the numbers are drawn again where they are needed, in every mode of differentiation.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from jaxnorm._axes import explicit_sharding, noise_shape, shared_sharding
from jaxnorm._bits import Part, is_known, random_indices, random_integers, random_words, resolution
from jaxnorm._checks import Scalar, is_concrete
from jaxnorm._compiler import in_memory
from jaxnorm._normal import DEVIATION_OF_16_BITS, standard_normal
from jaxnorm._packed_bits import Decisions, has_packed_form, packed_below, packed_decisions, packed_integers
from jaxnorm._spread_bits import spread_below

Form = Literal["cpu", "tpu", "any"]
DrawSize = tuple[tuple[int, ...], NamedSharding | None]
"""Shape and explicit sharding of a draw."""

SATURATION = -1.7580993408473766
"""What a SELU tends to for inputs far below 0: -scale alpha, the value that alpha dropout drops to."""


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

    def below(self, threshold: jax.Array, part: Part | None = None) -> jax.Array:
        """Returns True with probability `threshold / resolution(bits)`; a scalar, or an array that broadcasts to the shape.

        Of a draw of the shape of a `part`, the same as for these elements of the whole.
        """
        if self.form != "any":
            below = packed_below if self.form == "cpu" else spread_below
            return below(self.key, threshold, self.shape, self.bits, self.sharding, part)
        return random_integers(self.key, self.shape, self.bits, self.sharding, part=part) < threshold

    def words_below(self, threshold: jax.Array, *, packed: bool) -> Decisions:
        """Returns the same, in memory: each in a word, or where `packed` and to be had several neighbors along the last axis."""
        found = None
        if packed and self.form == "cpu":
            found = packed_decisions(self.key, threshold, self.shape, self.bits, self.sharding)
        return found or Decisions(in_memory(self.below(threshold).astype(jnp.uint8)), 1)

    def indices(self, sizes: jax.Array) -> jax.Array:
        """Returns for every element a uniform integer below its size, in memory; the sizes broadcast to the shape."""
        return in_memory(random_indices(self.key, self.shape, sizes, self.sharding))

    def of_shape(self, shape: Sequence[int]) -> "Draw":
        """Returns the draw for an array with other sizes of axes that are not sharded."""
        return replace(self, shape=tuple(shape))

    def part(self, axis: int, start: jax.Array | int, size: int) -> "DrawPart":
        """Returns the draw for so many elements along an axis, not the last, from one on; all where they share theirs."""
        whole = self.shape[axis]
        if whole == 1:
            return DrawPart(self, None)
        return DrawPart(self.of_shape((*self.shape[:axis], size, *self.shape[axis + 1 :])), Part(axis, start, whole))


class DrawPart(NamedTuple):
    """Of a draw for a larger array the decisions for a part of it; a draw of the part's shape, and which part that is."""

    draw: Draw
    of_whole: Part | None

    def below(self, threshold: jax.Array) -> jax.Array:
        """Returns what the whole draw's `below` does for these elements."""
        return self.draw.below(threshold, self.of_whole)


class NoiseKind(NamedTuple):
    """A kind of noise.

    Attributes:
      prepare: from its amount and the bits of an element to what it needs of them, computed once and not for every element.
      apply: from a draw, or several, x and what was prepared to y.
      decides: whether it takes decisions of yes or no from the draw.
    """

    prepare: Callable[[Any, int], Any]
    apply: Callable[..., jax.Array]
    decides: bool = False


def used_key(key: jax.Array) -> tuple[jax.Array, Any]:
    """Returns a key's data and generator, for branches and checkpoints, in which jax_debug_key_reuse sees a key used twice.

    It does not see draws from the data. Nothing is drawn here, but it sees the key used once.
    """
    jax.random.bits(key, (0,))
    return jax.random.key_data(key), jax.random.key_impl(key)


def multiply_noise(key: jax.Array, x: Any, amount: Any, kind: NoiseKind, shared: tuple[int, ...], bits: int) -> jax.Array:
    """Returns what noise of this kind makes of x, one draw for each element but for the `shared` axes.

    Args:
      key: a typed key.
      x: an array, or several of one shape for a kind that takes so many; the noise is for, and sharded as, the first.
      amount: the kind's parameter, a scalar or an array that broadcasts to the noise, or several; no gradient flows into it.
      kind: one of those below.
      shared: axes along which all elements share one draw.
      bits: random bits an element: 8, 16 or 32; 16 or 32 of a kind that does not decide.
    """
    return _multiply_noise(key, x, amount, kind=kind, shared=shared, bits=bits)


@functools.partial(jax.jit, static_argnames=("kind", "shared", "bits"))
def _multiply_noise(key: jax.Array, x: Any, amount: Any, *, kind: NoiseKind, shared: tuple[int, ...], bits: int) -> jax.Array:
    return draw_again(key, x, amount, kind, (draw_size(jax.tree.leaves(x)[0], shared),), bits)


def draw_size(x: jax.Array, shared: tuple[int, ...]) -> DrawSize:
    """Returns the size of one draw for each element of x but for the shared axes."""
    return noise_shape(x.shape, shared), shared_sharding(x, shared)


def draw_again(key: jax.Array, x: Any, amount: Any, kind: NoiseKind, sizes: Sequence[DrawSize], bits: int) -> jax.Array:
    """Returns `kind.apply(*draws, x, prepared)`, of which the gradient keeps the key, and of x what it takes of it.

    Args:
      key: a typed key, of which each draw gets its own, unless there is but one.
      x: one array or several.
      amount: the kind's parameters; no gradient flows into them.
      kind: what the draws do to x.
      sizes: shape and explicit sharding of each draw.
      bits: random bits an element.
    """
    data, impl = used_key(key)
    if len(sizes) > 1:
        keys = jax.random.split(jax.random.wrap_key_data(data, impl=impl), len(sizes))
        own = tuple(jax.random.key_data(keys[i]) for i in range(len(sizes)))
    else:
        own = (data,)

    def apply(own: tuple[jax.Array, ...], x: Any, prepared: Any, *, form: Form) -> jax.Array:
        fresh = (jax.random.wrap_key_data(data, impl=impl) for data in own)
        draws = (Draw(key, *size, bits, form) for key, size in zip(fresh, sizes, strict=True))
        return kind.apply(*draws, x, prepared)

    # The compiler must not see that forward and backward draw the same, or it would keep a byte an element or more from one to
    # the other. A CPU's may see it of packed decisions: that keeps a bit, and hashing again takes longer than reading it. A TPU's
    # may see it of decisions: what hides it there also keeps them from fusing with the layers before and after.
    anywhere = jax.checkpoint(functools.partial(apply, form="any"))
    on_cpu, on_tpu = (
        jax.checkpoint(functools.partial(apply, form=form), prevent_cse=not kind.decides) for form in ("cpu", "tpu")
    )

    def after_x(own: tuple[jax.Array, ...], x: Any, prepared: Any) -> jax.Array:
        # Numbers that go through memory are not to be drawn for all layers at once, before x is there.
        own, _ = lax.optimization_barrier((own, lax.stop_gradient(jax.tree.leaves(x)[0])))
        return on_cpu(own, x, prepared)

    # A part of an array of keys would be simplified into each draw in another way, and equal draws then not be seen as such.
    own = lax.optimization_barrier(own)
    operands = own, x, kind.prepare(lax.stop_gradient(amount), bits)
    forms = {"tpu": on_tpu, "default": anywhere}
    if has_packed_form(key, bits):
        through_memory = bits == 16 and not kind.decides
        forms["cpu"] = after_x if through_memory else on_cpu
    with jax.named_scope("jaxnorm.noise"):
        return lax.platform_dependent(*operands, **forms)


def keep_probability(rate: Scalar, dtype: Any) -> jax.Array | np.ndarray:
    """Returns `1 - rate`, rounded once; NaN for a traced rate outside [0, 1]."""
    if is_concrete(rate):
        return np.asarray(1 - np.asarray(rate, np.float64), dtype)
    rate = rate.astype(jnp.float64 if rate.dtype == jnp.float64 else dtype)
    return jnp.where((rate >= 0) & (rate <= 1), 1 - rate, jnp.nan).astype(dtype)


def amount_within(amount: Scalar, dtype: Any, inside: Callable[[jax.Array], jax.Array]) -> jax.Array | np.ndarray:
    """Returns an amount in this type; NaN for a traced one that is not inside its range."""
    if is_concrete(amount):
        return np.asarray(amount, dtype)
    amount = amount.astype(dtype)
    return jnp.where(inside(amount), amount, jnp.nan)


def decision(keep: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Returns the threshold for a probability to keep, and the probability that it stands for. All are kept for a NaN.

    32 bits decide as `jax.random.bernoulli` does: by a multiple of 2^-23, for which `keep` itself stands. Fewer bits realise
    another probability, by which is divided, so that the expectation is exact; one above 0 keeps 1 of 2^bits at least. The
    threshold is that of float32, whatever the type: a mask does not depend on what it is for.
    """
    steps = np.float32(resolution(bits))
    threshold = keep.astype(jnp.float32) * steps
    if bits == 32:
        threshold, realised = jnp.ceil(threshold), keep
    else:
        threshold = jnp.where(keep > 0, jnp.maximum(jnp.round(threshold), 1), threshold)
        realised = (threshold / steps).astype(keep.dtype)
    return jnp.where(jnp.isnan(keep), resolution(bits), threshold).astype(jnp.uint32), realised


def _scaled(keep: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    # Multiplied by the inverse: a division each program would make as it likes, and two of them then differ in the last bit.
    threshold, realised = decision(keep, bits)
    return threshold, 1 / jnp.where(realised == 0, 1, realised)  # where none is kept, gradients are finite too


def _unscaled(keep: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    threshold, _ = decision(keep, bits)
    return threshold, jnp.where(jnp.isnan(keep), keep, jnp.ones((), keep.dtype))


def _saturating(amount: tuple[jax.Array, jax.Array, jax.Array], bits: int) -> tuple[jax.Array, ...]:
    """Returns the threshold, scale and offset of what is kept, and what the dropped become, for a mean and a variance to keep.

    Of the probability that is realised, with 32 bits too. NaN where nothing is kept: no scale gives that a variance.
    """
    keep, mean, var = amount
    threshold, _ = decision(keep, bits)
    share = threshold.astype(keep.dtype) / np.asarray(resolution(bits), keep.dtype)
    realised = share * jnp.sqrt(jnp.where((keep > 0) & (var >= 0), jnp.ones((), keep.dtype), -1))  # no NaN but where it is wanted
    below = SATURATION - mean
    added = (1 - realised) * below**2
    none = added == 0  # the scale's limit is then the same for every variance, 0 too
    scale = jnp.sqrt(jnp.where(none, 1, var / jnp.where(none, 1, var + added)) / realised)
    return threshold, scale, mean - scale * (mean + (1 - realised) * below), mean + scale * realised * below


def decided(draw: Draw, threshold: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `draw.below(threshold)` for elements of x, of which many may share a decision.

    A CPU would draw it again for each of them, were it not in memory: a byte, half a bit an element or less.
    """
    if draw.form == "cpu" and is_known(x.shape) and x.size >= 16 * math.prod(draw.shape):
        return draw.words_below(threshold, packed=False).answers()
    return draw.below(threshold)


def kept_or_zero(draw: Draw, kept: jax.Array, x: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns x times the scale where it is kept, else 0.

    Of a selection between a product and 0 the compiler for a CPU makes one instruction, a product that is masked in its load from
    memory, and that takes up to twice as long. So there are two products before the selection, by ones of which the compiler does
    not know that they are, and two after it, where the gradient comes from. The ones are a row, of which there must be many.
    """
    rows = is_known(x.shape) and x.ndim > 1 and math.prod(x.shape[:-1]) >= 64
    if draw.form != "cpu" or not rows or x.dtype != scale.dtype or explicit_sharding(x) is not None:
        return jnp.where(kept, times(x, scale), jnp.zeros((), x.dtype))
    one = jnp.minimum(jax.random.key_data(draw.key)[0] | 1, 1)
    ones = in_memory(jnp.broadcast_to(one, (*[1] * (x.ndim - 1), x.shape[-1]))).astype(x.dtype)
    return jnp.where(kept, x * ones * scale, jnp.zeros((), x.dtype)) * ones * ones


def _keep_or_drop(draw: Draw, x: jax.Array, prepared: tuple[jax.Array, jax.Array]) -> jax.Array:
    threshold, scale = prepared
    return kept_or_zero(draw, decided(draw, threshold, x), x, scale)


def _keep_or_take(draw: Draw, x: tuple[jax.Array, jax.Array], prepared: tuple[jax.Array, jax.Array]) -> jax.Array:
    threshold, scale = prepared
    return jnp.where(decided(draw, threshold, x[0]), times(x[0], scale), x[1])


def _keep_or_saturate(draw: Draw, x: jax.Array, prepared: tuple[jax.Array, ...]) -> jax.Array:
    threshold, scale, offset, dropped = prepared
    return jnp.where(decided(draw, threshold, x), x.astype(scale.dtype) * scale + offset, dropped).astype(x.dtype)


def normal(draw: Draw, std: jax.Array) -> jax.Array:
    """Returns normal numbers of mean 0 and a deviation that `gaussian.prepare` has made."""
    return std * draw.numbers(functools.partial(standard_normal, dtype=std.dtype))


def _normal(draw: Draw, x: jax.Array, std: jax.Array) -> jax.Array:
    noise = normal(draw, std)
    if draw.form == "cpu" and draw.bits == 32 and x.dtype != noise.dtype:
        # XLA for CPUs, as of jax 0.12, would walk all paths from the rounding of y to the hash: minutes of compilation.
        noise = lax.optimization_barrier(noise)
    return noise


def _gaussian(draw: Draw, x: jax.Array, std: jax.Array) -> jax.Array:
    return times(x, 1 + _normal(draw, x, std))


def _learned_gaussian(draw: Draw, x: tuple[jax.Array, jax.Array], unit: jax.Array) -> jax.Array:
    return times(x[0], 1 + x[1] * _normal(draw, x[0], unit))


def _plus_gaussian(draw: Draw, x: jax.Array, std: jax.Array) -> jax.Array:
    return (x.astype(std.dtype) + _normal(draw, x, std)).astype(x.dtype)


def _of_standard(std: jax.Array, bits: int) -> jax.Array:
    return std / DEVIATION_OF_16_BITS if bits == 16 else std


def from_0_to_1(draw: Draw) -> jax.Array:
    """Returns uniform numbers in float32, with 32 bits those of `jax.random.uniform`."""
    return draw.numbers(lambda words: (words >> 9).astype(jnp.float32) * np.float32(2**-23))


def _uniform(draw: Draw, x: jax.Array, beta: jax.Array) -> jax.Array:
    return times(x, 1 + beta * (2 * from_0_to_1(draw) - 1).astype(beta.dtype))


def times(x: jax.Array, noise: jax.Array) -> jax.Array:
    """Multiplies in the wider of the two types and rounds once."""
    return (x.astype(noise.dtype) * noise).astype(x.dtype)


keep_or_drop = NoiseKind(_scaled, _keep_or_drop, decides=True)
"""x / keep with probability `keep`, else 0. A NaN `keep` gives NaN everywhere."""

keep_unscaled = NoiseKind(_unscaled, _keep_or_drop, decides=True)
"""x with probability `keep`, else 0. A NaN `keep` gives NaN everywhere."""

keep_or_take = NoiseKind(_unscaled, _keep_or_take, decides=True)
"""Of two arrays the first with probability `keep`, else the second. A NaN `keep` gives NaN everywhere."""

keep_or_saturate = NoiseKind(_saturating, _keep_or_saturate, decides=True)
"""x with probability `keep`, else `SATURATION`, and of it an affine map that keeps a mean and a variance.

The amount is `keep`, the mean and the variance. A NaN, no probability to keep or a negative variance give NaN everywhere.
"""

decisions = NoiseKind(lambda keep, bits: decision(keep, bits)[0], lambda draw, _, threshold: draw.below(threshold), decides=True)
"""True with probability `keep`, for an x of which only the shape counts. True everywhere for a NaN."""

gaussian = NoiseKind(_of_standard, _gaussian)
"""x * n with n ~ N(1, std^2)."""

learned_gaussian = NoiseKind(_of_standard, _learned_gaussian)
"""x * n with n ~ N(1, std^2), of x and std, into both of which gradients flow; the amount is 1."""

plus_gaussian = NoiseKind(_of_standard, _plus_gaussian)
"""x + n with n ~ N(0, std^2)."""

uniform = NoiseKind(lambda beta, _: beta, _uniform)
"""x * n with n ~ U(1 - beta, 1 + beta)."""
