"""Batch norm folded into the dense layer or the convolution before or after it, for bare arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._checks import (
    Scalar,
    check_finite,
    check_float,
    check_known_flag,
    check_shape,
    check_size,
    check_sizes_along,
    is_concrete,
)
from jaxnorm._types import AffineParams, RunningStats, widest_dtype
from jaxnorm.folding._weights import Along, scale_and_shift, spread, through
from jaxnorm.folding.affine import as_affine

_KEEPING = ("VALID", "CIRCULAR", "REFLECT")  # paddings by which an image of one color stays one


def fold_dense(
    params: AffineParams,
    state: RunningStats,
    kernel: jax.Array,
    bias: jax.Array | None,
    *,
    epsilon: Scalar = 1e-5,
    before: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns kernel and bias of a dense layer that does in inference what the layer and a batch norm after, or before, it do.

    With `factor, offset = as_affine(params, state)`: after the layer `kernel factor` and `bias factor + offset`, with a factor
    for each output; before the layer `factor[:, None] kernel` and `bias + offset @ kernel`.

    Args:
      params: `AffineParams(scale, bias)` of the batch norm, each of shape `[C]` or None.
      state: its `RunningStats(mean, var)`, each of shape `[C]`.
      kernel: `[features in, features out]`, of which C is the latter, or the former if `before`.
      bias: `[features out]`, or None for 0.
      epsilon: that of the batch norm; a number or a traced scalar.
      before: whether the batch norm is before the layer.

    Returns:
      kernel and bias, in the types of those given (the bias in that of the kernel if there was none), each rounded once.

    Raises:
      ValueError: if sizes do not fit; as `as_affine`; or if a result is too large for its type.
      TypeError: as `as_affine`.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, section 3.1, https://arxiv.org/abs/1502.03167.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.folding import fold_dense
      >>> params, state = jaxnorm.init_batch_norm(2)
      >>> state = state._replace(mean=jnp.array([1.0, -1.0]), var=jnp.array([4.0, 0.25]))
      >>> kernel, bias = jax.random.normal(jax.random.key(0), (3, 2)), jnp.zeros(2)
      >>> x = jax.random.normal(jax.random.key(1), (4, 3))
      >>> y, _ = jaxnorm.batch_norm(params, state, x @ kernel + bias, train=False)
      >>> kernel, bias = fold_dense(params, state, kernel, bias)
      >>> print(jnp.allclose(x @ kernel + bias, y, atol=1e-6))
      True
    """
    kernel = check_float("kernel", kernel, allow_complex=True)
    if kernel.ndim != 2:
        raise ValueError(f"kernel must be [features in, features out], got shape {list(kernel.shape)}")
    return _folded(params, state, kernel, bias, epsilon, before=before, inputs=0, outputs=1)


def fold_conv(
    params: AffineParams,
    state: RunningStats,
    kernel: jax.Array,
    bias: jax.Array | None,
    *,
    epsilon: Scalar = 1e-5,
    before: bool = False,
    feature_group_count: int = 1,
    strides: int | Sequence[int] = 1,
    padding: str | int | Sequence[int | tuple[int, int]] = "SAME",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    transposed: bool = False,
    transpose_kernel: bool = False,
    spatial_shape: Sequence[int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns kernel and bias of a convolution that does in inference what it and a batch norm after, or before, it do.

    With `factor, offset = as_affine(params, state)`: after the convolution `kernel factor` and `bias factor + offset`, with a
    factor for each output; before it `factor kernel`, with a factor for each input, and `bias + conv(offset, kernel)`.

    After a convolution the fold is exact whatever the convolution is, and of its arguments only the groups and `transpose_kernel`
    matter. Before one, what pads the input with zeros pads behind the batch norm: at the borders the offset adds less. There the
    fold is exact where nothing is padded (`padding="VALID"`, without input dilation or transposition), where padding repeats the
    input ("CIRCULAR", "REFLECT"), where all offsets are 0, and, with `spatial_shape`, for inputs of that size: the bias is then a
    map. Anything else is an error.

    Args:
      params: `AffineParams(scale, bias)` of the batch norm, each of shape `[C]` or None.
      state: its `RunningStats(mean, var)`, each of shape `[C]`.
      kernel: `[..., features in / groups, features out]` with any number of spatial axes before, as Flax's `Conv` and
        `ConvTranspose` have it; with `transpose_kernel` `[..., features out, features in]`. C is the number of features out, or
        of those in if `before`.
      bias: `[features out]`, or None for 0.
      epsilon: that of the batch norm; a number or a traced scalar.
      before: whether the batch norm is before the convolution.
      feature_group_count: number of groups; that of the features in for a depthwise convolution.
      strides: of the convolution, an int or one for each spatial axis; of a transposed one, its dilation of the input.
      padding: "SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL", an int, or an int or two for each spatial axis, as in Flax.
      input_dilation: an int or one for each spatial axis.
      kernel_dilation: an int or one for each spatial axis.
      transposed: whether the convolution is transposed, as `ConvTranspose`.
      transpose_kernel: whether a transposed convolution's kernel is that of the convolution it is the gradient of.
      spatial_shape: sizes of the spatial axes of x, for a bias that is a map where it must be one.

    Returns:
      kernel and bias, in the types of those given (the bias in that of the kernel if there was none), each rounded once. The
      bias is `[features out]`, or a map `[*spatial axes out, features out]` if `spatial_shape` was given and the layer pads.

    Raises:
      ValueError: if sizes do not fit; if the batch norm is before a convolution that pads with zeros, without a
        `spatial_shape`; as `as_affine`; or if a result is too large for its type.
      TypeError: as `as_affine`.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, section 3.1, https://arxiv.org/abs/1502.03167.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> from flax import linen as nn
      >>> from jaxnorm.folding import fold_conv
      >>> conv, x = nn.Conv(4, (3, 3)), jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
      >>> kernel, bias = conv.init(jax.random.key(1), x)["params"].values()
      >>> params, state = jaxnorm.init_batch_norm(3)
      >>> state = state._replace(mean=jnp.array([1.0, 2.0, 3.0]))
      >>> normalized, _ = jaxnorm.batch_norm(params, state, x, train=False)
      >>> y = conv.apply({"params": {"kernel": kernel, "bias": bias}}, normalized)
      >>> kernel, bias = fold_conv(params, state, kernel, bias, before=True, spatial_shape=(8, 8))
      >>> folded = nn.Conv(4, (3, 3), use_bias=False).apply({"params": {"kernel": kernel}}, x) + bias
      >>> bias.shape, bool(jnp.allclose(folded, y, atol=1e-5))
      ((8, 8, 4), True)
    """
    kernel = check_float("kernel", kernel, allow_complex=True)
    if kernel.ndim < 2:
        raise ValueError(f"kernel must be [..., features in, features out], got shape {list(kernel.shape)}")
    groups = check_size("feature_group_count", feature_group_count)
    transposed = check_known_flag("transposed", transposed)
    if check_known_flag("transpose_kernel", transpose_kernel) and not transposed:
        raise ValueError("transpose_kernel is of transposed convolutions, got transposed=False")
    if transposed and groups > 1:
        raise ValueError(f"feature_group_count must be 1 for a transposed convolution, got {groups}")
    spatial = range(kernel.ndim - 2)
    inputs, outputs = (kernel.ndim - 1, kernel.ndim - 2) if transpose_kernel else (kernel.ndim - 2, kernel.ndim - 1)
    sizes = {"strides": strides, "input_dilation": input_dilation, "kernel_dilation": kernel_dilation}
    strides, input_dilation, kernel_dilation = (check_sizes_along(name, value, spatial) for name, value in sizes.items())
    window: Any = _window(padding, len(spatial), kernel_dilation, kernel.shape)
    spaced = transposed or any(size > 1 for size in input_dilation)  # zeros are put between the elements of x
    if spaced and window in ("CIRCULAR", "REFLECT"):
        raise ValueError(f"padding must add zeros where x is transposed or dilated, got {padding!r}")
    pads = spaced or (window not in _KEEPING if isinstance(window, str) else any(map(any, window)))
    if pads and spatial_shape is not None and len(spatial_shape) != len(spatial):
        raise ValueError(f"spatial_shape must be {len(spatial)} sizes, as the kernel's, got {spatial_shape!r}")

    def map_of(offset: jax.Array) -> jax.Array:
        """What the convolution makes of an image of the offsets."""
        if spatial_shape is None:
            raise ValueError(
                f"before=True with padding {padding!r}{' and transposition' if transposed else ''} adds zeros behind the batch "
                "norm: give spatial_shape, the sizes of x, for a bias that is a map, or let the convolution pad nothing"
            )
        wide = widest_dtype(kernel, offset)
        image = jnp.broadcast_to(offset.astype(wide), (1, *spatial_shape, offset.size))
        options: Any = {"rhs_dilation": kernel_dilation, "dimension_numbers": _layout(kernel.ndim), "precision": "highest"}
        if transposed:
            y = lax.conv_transpose(image, kernel.astype(wide), strides, window, transpose_kernel=transpose_kernel, **options)
            return y[0]
        pairs = [(0, 0)] * len(spatial) if window == "VALID" else window  # the word goes without input dilation
        options |= {"lhs_dilation": input_dilation, "feature_group_count": groups}
        return lax.conv_general_dilated(image, kernel.astype(wide), strides, pairs, **options)[0]

    return _folded(
        params,
        state,
        kernel,
        bias,
        epsilon,
        before=before,
        inputs=inputs,
        outputs=outputs,
        groups=groups,
        map_of=map_of if pads else None,
    )


def _folded(
    params: AffineParams,
    state: RunningStats,
    kernel: jax.Array,
    bias: jax.Array | None,
    epsilon: Scalar,
    *,
    before: bool,
    inputs: int,
    outputs: int,
    groups: int = 1,
    map_of: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the new kernel and bias, of a kernel with features in and out on these axes."""
    before = check_known_flag("before", before)
    factor, offset = as_affine(params, state, epsilon=epsilon)
    if factor.ndim != 1:
        raise ValueError(f"params and state must be of one axis of channels, [C], got shape {list(factor.shape)}")
    features = kernel.shape[outputs]
    if features % groups:
        raise ValueError(f"feature_group_count must divide the {features} features out, got {groups}")
    channels = kernel.shape[inputs] * groups if before else features
    if factor.size != channels:
        raise ValueError(
            f"params and state must be of the {channels} features that the kernel {list(kernel.shape)} "
            f"{'takes' if before else 'gives'}, got {factor.size}"
        )
    if bias is None:
        bias = jnp.zeros(features, kernel.dtype)
    bias = check_float("bias", bias, allow_complex=True)
    check_shape("bias", bias, (features,), "the features out")
    if not before:
        along, own = Along(outputs), Along(0)
        folded = scale_and_shift(kernel, factor, along), scale_and_shift(bias, factor, own, offset)
    else:
        along = Along(inputs, outputs, groups)
        folded = scale_and_shift(kernel, factor, along), _moved(bias, kernel, offset, along, outputs, map_of)
    for name, part in zip(("kernel", "bias"), folded, strict=True):
        check_finite(f"the folded {name}, in {part.dtype},", part)
    return folded


def _moved(bias: jax.Array, kernel: jax.Array, offset: jax.Array, along: Along, outputs: int, map_of: Any) -> jax.Array:
    """Returns the bias with what the layer makes of the offset."""
    unmoved = is_concrete(offset) and not np.any(np.asarray(offset))
    moved = through(kernel, offset, along, (outputs,)) if map_of is None or unmoved else map_of(offset)
    return (moved + spread(bias.astype(moved.dtype), moved, Along(moved.ndim - 1))).astype(bias.dtype)


def _layout(ndim: int) -> Any:
    """Channels last, as Flax has them."""
    letters = "".join("0123456789"[: ndim - 2])
    return f"N{letters}C", f"{letters}IO", f"N{letters}C"


def _window(padding: Any, ndim: int, dilation: Sequence[int], kernel: Sequence[int]) -> Any:
    """Returns a padding as jax's convolutions take it, or one of Flax's words for others."""
    words = ("SAME", "CAUSAL", *_KEEPING)
    if isinstance(padding, str):
        if padding not in words:
            raise ValueError(f"padding must be one of {', '.join(words)}, or ints, got {padding!r}")
        if padding != "CAUSAL":
            return padding
        if ndim != 1:
            raise ValueError(f"padding 'CAUSAL' is of one spatial axis, got a kernel with {ndim}")
        padding = [(dilation[0] * (kernel[0] - 1), 0)]
    pairs = [padding] * ndim if isinstance(padding, int) else list(padding)
    pairs = [(pair, pair) if isinstance(pair, int) else tuple(pair) for pair in pairs]
    if len(pairs) != ndim:
        raise ValueError(f"padding must be an int, or one or two for each of the {ndim} spatial axes, got {padding!r}")
    return pairs
