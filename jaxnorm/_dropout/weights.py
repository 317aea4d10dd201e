"""Dropout of weights: single weights, rows of an embedding, and back to weights that training began with.

The layer then computes with what is given here; the weights themselves are those that are learned.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._axes import canonical_axes, noise_shape
from jaxnorm._checks import (
    Scalar,
    check_amount_shape,
    check_decision_bits,
    check_float,
    check_key,
    check_like,
    check_number,
)
from jaxnorm._noise import Draw, NoiseKind, decided, decision, keep_or_drop, keep_probability, multiply_noise
from jaxnorm._types import wide_dtype

Tree = Any
"""An array, or a tree of them."""


def drop_connect(key: jax.Array, kernel: Tree, rate: Scalar, *, bits: int = 16) -> Tree:
    """Sets single weights to zero at random and scales up the others (DropConnect, weight drop).

    Training: `W = kernel / (1 - rate)` with probability `1 - rate`, else 0, independently for every weight, so that
    `E[W] = kernel`. Inference: the kernel itself.

    One draw serves all examples of the batch, and all steps of a sequence: the weight drop of recurrent layers is this, of the
    hidden-to-hidden kernels, once a sequence, before the scan over it. `drop_connect_dense` draws for each example.
    EfficientNet's "drop connect" is neither: it drops the branches of examples (drop path).

    Every array of a tree is drawn from a key of its own, which depends on the key and on how many arrays there are before it.
    The gradient is that of `dropout`, and keeps the key alone.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      kernel: array of floating point numbers, or a tree of them, of any shapes; all of it is dropped.
      rate: the probability of dropping a weight, as in `dropout`.
      bits: random bits a weight that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      The same tree, of arrays of the same shapes and dtypes.

    Raises:
      ValueError: as `dropout`.
      TypeError: as `dropout`, of every array of the tree.

    References:
      Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of neural networks using DropConnect", ICML 2013,
      https://proceedings.mlr.press/v28/wan13.html. The paper draws for each example, and scales at test time. Merity, Keskar,
      Socher, "Regularizing and optimizing LSTM language models", ICLR 2018, https://arxiv.org/abs/1708.02182.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> jaxnorm.drop_connect(jax.random.key(1), {"kernel": jnp.ones((2, 4))}, 0.5)
      {'kernel': Array([[2., 0., 0., 2.],
             [2., 0., 2., 0.]], dtype=float32)}
    """
    key = check_key(key)
    leaves, structure = jax.tree_util.tree_flatten_with_path(kernel)
    arrays = tuple(check_float(f"kernel{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves)
    bits = _checked_rate(rate, [array.shape for array in arrays], bits)
    return jax.tree.unflatten(structure, _drop_connect(key, arrays, _keeps(rate, arrays), bits=bits))


def embedding_dropout(key: jax.Array, table: jax.Array, rate: Scalar, *, bits: int = 16) -> jax.Array:
    """Sets whole rows of an embedding table to zero at random and scales up the others: words are dropped everywhere.

    Training: `row = table[v] / (1 - rate)` with probability `1 - rate`, else 0, independently for each of the V words, so that
    a word is dropped wherever it occurs in the batch. Inference: the table itself.

    Look up in what is given, as `embedding_dropout(key, table, rate)[tokens]`. Where the output layer shares the table (a tied
    softmax), it must take the table itself: a word whose row is dropped could not be predicted. A rate for each word, `[V, 1]`,
    may say how often it occurs.

    A row that is dropped is 0 whatever it holds, NaN and infinity too. Only the key is kept for the gradient.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      table: array of floating point numbers, `[V, ...]`.
      rate: the probability of dropping a row, in [0, 1]; a number or a traced scalar, or an array `[V, 1, ...]`. No gradient
        flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      bits: random bits a row that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      Array of the table's shape and dtype.

    Raises:
      ValueError: if table has no axis; else as `dropout`.
      TypeError: as `dropout`.

    References:
      Gal, Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NIPS 2016,
      https://arxiv.org/abs/1512.05287; Merity, Keskar, Socher, "Regularizing and optimizing LSTM language models", ICLR 2018,
      https://arxiv.org/abs/1708.02182.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> jaxnorm.embedding_dropout(jax.random.key(0), jnp.ones((4, 2)), 0.5)
      Array([[2., 2.],
             [2., 2.],
             [2., 2.],
             [0., 0.]], dtype=float32)
    """
    key = check_key(key)
    table = check_float("table", table)
    if not table.ndim:
        raise ValueError("table must have an axis of words, got shape []")
    shared = tuple(range(1, table.ndim))
    bits = _checked_rate(rate, [noise_shape(table.shape, shared)], bits)
    return multiply_noise(key, table, keep_probability(rate, wide_dtype(table.dtype)), keep_or_drop, shared, bits)


def mixout(
    key: jax.Array, params: Tree, target: Tree, rate: Scalar, *, broadcast_dims: int | Sequence[int] = (), bits: int = 16
) -> Tree:
    """Sets single weights back to others at random, as to those before fine-tuning, and moves the rest away from them.

    Training: `W = u + (w - u) / (1 - rate)` with probability `1 - rate`, else `u`, independently for every weight w with its
    target u, so that `E[W] = w`. Inference: the parameters themselves.

    It is dropout with u in the place of 0: with a target of zeros it is `drop_connect`, at the rate 0 it gives the parameters, at
    1 the target. On average a quadratic loss grows by `rate / (1 - rate) sum(H_ii (w_i - u_i)^2) / 2`: weights are pulled to
    their targets.

    The derivative is that of the formula, `1 / (1 - rate)` for a weight that is not set back; the authors' code leaves that
    factor out of it. They draw once for all outputs of an input: `broadcast_dims=-1` for kernels `[..., in, out]`.

    What is set back is the target whatever the weight is, NaN and infinity too. Only the key is kept for the gradient. Arrays of
    a tree are drawn for as in `drop_connect`.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      params: array of floating point numbers, or a tree of them.
      target: the same tree, of arrays of the same shapes.
      rate: the probability of setting a weight back, in [0, 1]; a number or a traced scalar, or an array of the arrays' rank that
        broadcasts to the mask. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      broadcast_dims: axes of every array along which all weights share one draw.
      bits: random bits a weight that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      The same tree, of arrays of the shapes and dtypes of the parameters.

    Raises:
      ValueError: if target is another tree than params, or has other shapes; else as `dropout`.
      TypeError: as `dropout`, of every array of both trees.

    References:
      Lee, Cho, Kang, "Mixout: effective regularization to finetune large-scale pretrained language models", ICLR 2020,
      https://arxiv.org/abs/1909.11299.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> jaxnorm.mixout(jax.random.key(0), jnp.full(6, 1.25), jnp.ones(6), 0.5)
      Array([1. , 1. , 1.5, 1.5, 1. , 1.5], dtype=float32)
    """
    key = check_key(key)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    if jax.tree.structure(target) != structure:
        raise ValueError(f"target must be a tree like params, {structure}, got {jax.tree.structure(target)}")
    pairs, shared = [], []
    for (path, leaf), aim in zip(leaves, jax.tree.leaves(target), strict=True):
        name = jax.tree_util.keystr(path)
        array = check_float(f"params{name}", leaf)
        pairs.append((array, check_like(f"target{name}", aim, array, f"params{name}")))
        shared.append(canonical_axes("broadcast_dims", broadcast_dims, array.ndim))
    arrays = [array for array, _ in pairs]
    bits = _checked_rate(rate, [noise_shape(array.shape, axes) for array, axes in zip(arrays, shared, strict=True)], bits)
    mixed = _mixout(key, tuple(pairs), _keeps(rate, arrays), shared=tuple(shared), bits=bits)
    return jax.tree.unflatten(structure, mixed)


def _checked_rate(rate: Scalar, shapes: Sequence[tuple[int, ...]], bits: int) -> int:
    """Returns how many bits decide, or raises unless the rate is a probability that draws of these shapes can have."""
    check_number("rate", rate, low=0, high=1)
    for shape in shapes:
        check_amount_shape("rate", rate, shape)
    return check_decision_bits(bits, rate)


def _keeps(rate: Scalar, arrays: Sequence[jax.Array]) -> tuple[Any, ...]:
    """Returns the probability to keep for each of the arrays, in the type that it is computed with in."""
    return tuple(keep_probability(rate, wide_dtype(array.dtype)) for array in arrays)


@functools.partial(jax.jit, static_argnames=("bits",))
def _drop_connect(key: jax.Array, arrays: tuple[jax.Array, ...], keeps: Any, *, bits: int) -> list[jax.Array]:
    keys = jax.random.split(key, len(arrays))
    return [
        multiply_noise(keys[i], array, keep, keep_or_drop, (), bits)
        for i, (array, keep) in enumerate(zip(arrays, keeps, strict=True))
    ]


@functools.partial(jax.jit, static_argnames=("shared", "bits"))
def _mixout(key: jax.Array, pairs: Any, keeps: Any, *, shared: tuple[tuple[int, ...], ...], bits: int) -> list[jax.Array]:
    keys = jax.random.split(key, len(pairs))
    return [
        multiply_noise(keys[i], pair, keep, _MIXOUT, axes, bits)
        for i, (pair, keep, axes) in enumerate(zip(pairs, keeps, shared, strict=True))
    ]


def _excess(keep: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Returns the threshold for a probability to keep, and how much more than 1 its inverse is."""
    threshold, realised = decision(keep, bits)
    return threshold, (1 - realised) / jnp.where(realised == 0, 1, realised)  # where none is kept, gradients are finite too


def _mix(draw: Draw, pair: tuple[jax.Array, jax.Array], prepared: tuple[jax.Array, jax.Array]) -> jax.Array:
    threshold, excess = prepared
    own, target = (array.astype(excess.dtype) for array in pair)
    return jnp.where(decided(draw, threshold, own), own + (own - target) * excess, target).astype(pair[0].dtype)


_MIXOUT = NoiseKind(_excess, _mix, decides=True)
"""w + (w - u) (1 / keep - 1) with probability `keep`, else u. A NaN `keep` gives NaN everywhere."""
