"""Slow versions of the layers in NumPy and float64, written from the papers, without jax."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erfinv

Array = NDArray


class Normalized(NamedTuple):
    y: Array
    mean: Array
    var: Array


def wide(x: ArrayLike) -> Array:
    """Returns x in float64 or complex128: exact for every type that jax has."""
    x = np.asarray(x)
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def moments(x: ArrayLike, axes: Sequence[int], where: ArrayLike | None = None) -> tuple[Array, Array, Array]:
    """Mean, biased variance and count over `axes` of what `where` counts; 0 where nothing does. Reduced axes stay, at size 1."""
    x, axes = wide(x), tuple(axes)
    counted = np.broadcast_to(True if where is None else np.asarray(where), x.shape)
    n = counted.sum(axes, keepdims=True)
    some = np.maximum(n, 1)
    mean = np.where(counted, x, 0).sum(axes, keepdims=True) / some
    var = (np.abs(np.where(counted, x - mean, 0)) ** 2).sum(axes, keepdims=True) / some
    return mean, var, n


def batch_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    state: tuple[ArrayLike, ArrayLike],
    x: ArrayLike,
    *,
    train: bool,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
    unbiased: bool = False,
) -> Normalized:
    """Algorithms 1 and 2 of Ioffe and Szegedy (2015), with running averages. Counts at least one element in every channel."""
    x = wide(x)
    axes = reduced_axes(x.ndim, channel_axis)
    kept = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    running_mean, running_var = (np.expand_dims(wide(part), axes) for part in state)
    mean, var, n = moments(x, axes, where)
    if train:
        bessel = n / np.maximum(n - 1, 1) if unbiased else 1.0
        new_mean = momentum * running_mean + (1 - momentum) * mean
        new_var = momentum * running_var + (1 - momentum) * var * bessel
    else:
        mean, var, new_mean, new_var = running_mean, running_var, running_mean, running_var
    y = (x - mean) / np.sqrt(var + epsilon)
    if params[0] is not None:
        y = y * np.expand_dims(wide(params[0]), axes)
    if params[1] is not None:
        y = y + np.expand_dims(wide(params[1]), axes)
    return Normalized(y, new_mean.reshape(kept), new_var.reshape(kept))


def batch_norm_gradient(
    x: ArrayLike, scale: ArrayLike, dy: ArrayLike, *, epsilon: float, where: ArrayLike | None = None, channel_axis: int = -1
) -> tuple[Array, Array, Array]:
    """Gradients of `sum(y dy)` for x, scale and bias in training: the paper's, where what counts moves the statistics."""
    x, dy = wide(x), wide(dy)
    axes = reduced_axes(x.ndim, channel_axis)
    mean, var, n = moments(x, axes, where)
    share = np.broadcast_to(True if where is None else np.asarray(where), x.shape) / n
    inverse = 1 / np.sqrt(var + epsilon)
    normal = (x - mean) * inverse
    over = {"axis": axes, "keepdims": True}
    dx = dy - share * dy.sum(**over) - share * normal * (dy * normal).sum(**over)
    return np.expand_dims(wide(scale), axes) * inverse * dx, (dy * normal).sum(axes), dy.sum(axes)


def reduced_axes(ndim: int, channel_axis: int | Sequence[int]) -> tuple[int, ...]:
    channels = (channel_axis,) if isinstance(channel_axis, int) else channel_axis
    return tuple(sorted(set(range(ndim)) - {a % ndim for a in channels}))


def threefry2x32(key: ArrayLike, counter: tuple[ArrayLike, ArrayLike]) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds, from Salmon, Moraes, Dror and Shaw (2011), in Python's order: round after round."""
    k = [int(word) for word in np.asarray(key)]
    k.append(0x1BD11BDA ^ k[0] ^ k[1])
    rotations = (13, 15, 26, 6, 17, 29, 16, 24)
    modulus = np.uint64(2**32 - 1)
    a, b = ((np.asarray(word).astype(np.uint64) + np.uint64(k[i])) & modulus for i, word in enumerate(counter))
    for r in range(20):
        turn = np.uint64(rotations[r % 8])
        a = (a + b) & modulus
        b = ((b << turn) | (b >> (np.uint64(32) - turn))) & modulus
        b = b ^ a
        if r % 4 == 3:
            injection = r // 4 + 1
            a = (a + np.uint64(k[injection % 3])) & modulus
            b = (b + np.uint64(k[(injection + 1) % 3] + injection)) & modulus
    return a.astype(np.uint32), b.astype(np.uint32)


def random_words(key: ArrayLike, shape: Sequence[int]) -> Array:
    """One word for each element: the cipher of its 64-bit index, both halves in one."""
    index = np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
    high, low = threefry2x32(key, (index >> 32, index & 0xFFFFFFFF))
    return high ^ low


def uniform_numbers(key: ArrayLike, shape: Sequence[int]) -> Array:
    """Multiples of 2^-23 in [0, 1)."""
    return (random_words(key, shape) >> 9) / 2.0**23


def keep_mask(key: ArrayLike, shape: Sequence[int], rate: float) -> Array:
    """Bernoulli's choice: kept where the uniform number is below the probability to keep, which is held in float32."""
    return uniform_numbers(key, shape) < np.float32(1 - rate)


def gaussian_noise(key: ArrayLike, shape: Sequence[int], rate: float) -> Array:
    """N(1, rate / (1 - rate)) by inversion, from the open interval (-1, 1) as float32 holds it."""
    low = float(np.nextafter(np.float32(-1), np.float32(0)))
    u = uniform_numbers(key, shape).astype(np.float32) * np.float32(1 - low) + np.float32(low)
    u = np.maximum(low, u)
    return 1 + np.sqrt(rate / (1 - rate)) * np.sqrt(2) * erfinv(u.astype(np.float64))


def uniform_noise(key: ArrayLike, shape: Sequence[int], beta: float) -> Array:
    """U(1 - beta, 1 + beta)."""
    return 1 - beta + 2 * beta * uniform_numbers(key, shape)
