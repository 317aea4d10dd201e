"""The shift of variances that dropout leaves in running statistics, taken back in closed form."""

import jax
import jax.numpy as jnp

from jaxnorm._checks import Scalar, check_float, check_number
from jaxnorm._moments import abs_square
from jaxnorm.statistics._layers import Layer, PyTree, check_layers, layers_of, map_layers


def correct_variance_shift(
    stats: PyTree, rate: Scalar, *, kernel: jax.Array | None = None, second_moment: jax.Array | None = None
) -> PyTree:
    """Returns the running statistics of batch norms after dropout as they were without it, from nothing but themselves.

    Noise of mean 1 leaves the mean, and adds to the variance, which inference then misses. Right before batch norm it adds
    `rate / (1 - rate) (mean^2 + v)` to v, so that `var = (1 - rate) stats.var - rate mean^2`. Before a linear layer before batch
    norm, it adds `rate / (1 - rate) sum_i w_i^2 E[x_i^2]`, however correlated the x_i are, and `var` is `stats.var` less that:
    for this give the layer's kernel and the second moment of its input. Any noise of mean 1 does as dropout of equal variance
    does: uniform dropout of beta as a rate of `beta^2 / (3 + beta^2)`.

    Each layer's own noise is taken back exactly. What the noise of the layers before it did to the distribution of its input is
    not: where there are data, `precise_stats` is exact.

    Args:
      stats: running statistics with mean and variance, as in `precise_stats`, of layers that all have such noise before them;
        with a kernel those of one layer.
      rate: probability of dropping, in [0, 1); a number, or an array that broadcasts to the channels, traced or not.
      kernel: weights of a dense layer or a convolution between noise and batch norm, `[..., C / groups, F]`.
      second_moment: `E[x_i^2]` of that layer's input without noise, `[C]`. (Of padding a convolution's is 0: there it is less
        than is taken back.)

    Returns:
      Statistics like those given; a variance that would be below 0 is 0.

    Raises:
      ValueError: if a layer has no mean or no variance; if a concrete rate is outside [0, 1); if one of kernel and second_moment
        is given without the other, or with statistics of several layers; if they do not fit together, or the channels.
      TypeError: if stats hold no arrays in float32 or wider, kernel or second_moment no real numbers, or rate is no number.

    References:
      Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
      https://arxiv.org/abs/1801.05134. The formulas are its equations 8 and 14 solved for the variance, the second without
      its assumption that all inputs are alike.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.statistics import correct_variance_shift
      >>> params, stats = jaxnorm.init_batch_norm(1)
      >>> x = 1 + jax.random.normal(jax.random.key(0), (200_000, 1))
      >>> noisy = jaxnorm.dropout(jax.random.key(1), x, 0.5)
      >>> _, stats = jaxnorm.batch_norm(params, stats, noisy, train=True, momentum=0.0)
      >>> print(stats.var.round(1), correct_variance_shift(stats, 0.5).var.round(1))
      [3.] [1.]
    """
    check_layers("stats", stats)
    check_number("rate", rate, low=0, high=1, open_high=True)
    layers = layers_of(stats)
    if lacking := [path or "the layer" for path, layer in layers.items() if set(layer) != {"mean", "var"}]:
        raise ValueError(f"stats must hold mean and var of each layer, got others in {', '.join(lacking[:3])}")
    if (kernel is None) != (second_moment is None):
        missing = "kernel" if kernel is None else "second_moment"
        raise ValueError(f"kernel and second_moment must be given together, got no {missing}")
    if kernel is None:
        return map_layers(lambda layer: _before_norm(layer, rate), stats)
    if len(layers) != 1:
        raise ValueError(f"stats must be those of one layer where its kernel is given, got {len(layers)} layers")
    added = second_moment_of_noise(kernel, second_moment, next(iter(layers.values()))["var"].shape, "stats")
    return map_layers(lambda layer: _before_linear(layer, rate, added), stats)


def _before_norm(layer: Layer, rate: Scalar) -> Layer:
    mean, var = layer["mean"], layer["var"]
    rate = _amount(rate, var)
    return {"mean": mean, "var": jnp.maximum((1 - rate) * var - rate * abs_square(mean), jnp.zeros((), var.dtype))}


def _before_linear(layer: Layer, rate: Scalar, added: jax.Array) -> Layer:
    mean, var = layer["mean"], layer["var"]
    rate = _amount(rate, var)
    new = var - rate / (1 - rate) * added.astype(var.dtype)
    return {"mean": mean, "var": jnp.maximum(new, jnp.zeros((), var.dtype))}


def second_moment_of_noise(kernel: jax.Array, second_moment: jax.Array | None, channels: tuple[int, ...], of: str) -> jax.Array:
    """Returns `sum_i w_i^2 E[x_i^2]` for each channel of the layer's output, which are those `of` another argument."""
    kernel, second_moment = check_float("kernel", kernel), check_float("second_moment", second_moment)
    if kernel.ndim < 2 or channels != kernel.shape[-1:]:
        raise ValueError(
            f"kernel must be [..., C / groups, F] with F the channels of {of}, {list(channels)}, got {list(kernel.shape)}"
        )
    *_, inputs, outputs = kernel.shape
    groups = second_moment.size // max(inputs, 1)
    if second_moment.ndim != 1 or groups * inputs != second_moment.size or groups < 1 or outputs % groups:
        raise ValueError(
            f"second_moment must be [C] for a kernel of shape {list(kernel.shape)}, got shape {list(second_moment.shape)}"
        )
    wide = jnp.promote_types(jnp.float32, jnp.promote_types(kernel.dtype, second_moment.dtype))
    squares = jnp.sum(jnp.square(kernel.astype(wide)), tuple(range(kernel.ndim - 2))).reshape(inputs, groups, outputs // groups)
    return jnp.einsum("cgo,gc->go", squares, second_moment.astype(wide).reshape(groups, inputs), precision="highest").reshape(-1)


def _amount(rate: Scalar, var: jax.Array) -> jax.Array:
    rate = jnp.asarray(rate).astype(var.dtype)
    if rate.ndim > var.ndim or any(own not in (1, size) for own, size in zip(rate.shape[::-1], var.shape[::-1], strict=False)):
        raise ValueError(f"rate must broadcast to the channels, {list(var.shape)}, got shape {list(rate.shape)}")
    return jnp.broadcast_to(rate.reshape((1,) * (var.ndim - rate.ndim) + rate.shape), var.shape)
