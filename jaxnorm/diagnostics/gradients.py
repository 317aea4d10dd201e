"""Gradients by depth, and how far those of batches are from that of all the data."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._checks import check_key, check_size
from jaxnorm._types import wide_dtype
from jaxnorm.diagnostics._layers import Layer, check_list, difference, layers_of, whole
from jaxnorm.diagnostics.models import BatchLoss, PyTree, as_loss


class GradientNorms(NamedTuple):
    """Norms of a gradient by layer.

    Attributes:
      norms: l2 norm of the gradient of each layer, from the first to the last, `[layers]`.
      ratio: that of the first layer over that of the last, `[]`: far below 1 where gradients vanish on their way back, far above
        where they explode.
    """

    norms: jax.Array
    ratio: jax.Array


class GradientNoise(NamedTuple):
    """How far gradients of batches are from the gradient of all the data.

    Attributes:
      variance: `E |g - E g|^2` of the gradients g of batches of each size, `[sizes]`.
      square_bias: `|E g - G|^2`, with G the gradient of all the data, `[sizes]`; an estimate without bias of its own, so it may
        come out below 0 where it is small.
      square_norm: `|G|^2`, `[]`.
    """

    variance: jax.Array
    square_bias: jax.Array
    square_norm: jax.Array


def layer_names(params: PyTree, *, layers: Sequence[Layer] | None = None, stacked: str | Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the names of the layers that measurements by layer are of, in their order.

    Args:
      params: parameters of a network.
      layers: as in `gradient_norms`.
      stacked: as in `gradient_norms`.

    Returns:
      A name for each layer: its path, or the first of its paths; of stacked layers with the number of each.

    Raises:
      ValueError: as in `gradient_norms`.
      TypeError: as in `gradient_norms`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.diagnostics import layer_names
      >>> params = {"first": jnp.ones((3, 8)), "hidden": jnp.ones((2, 8, 8)), "last": jnp.ones((8, 2))}
      >>> layer_names(params, layers=("first", "hidden", "last"), stacked="hidden")
      ('first', 'hidden/0', 'hidden/1', 'last')
    """
    return layers_of(params, layers, stacked).names


def gradient_norms(
    loss: BatchLoss,
    params: PyTree,
    batch: Any,
    *,
    layers: Sequence[Layer] | None = None,
    stacked: str | Sequence[str] = (),
) -> GradientNorms:
    """Returns the norm of the gradient of each layer, and the ratio of the first one's to the last one's.

    `norms[i] = |dL/dW_i|_2`, over all parameters `W_i` of layer i, and `ratio = norms[0] / norms[-1]`. A gradient of 1e-30 has
    its norm too, which a sum of squares in float32 would lose.

    Args:
      loss: a function of params and a batch that returns a scalar; `model_loss` makes one of a model.
      params: parameters of the network, a tree of arrays.
      batch: what loss takes.
      layers: the layers from the first to the last. Each is a path in params, as `"Dense_0"` or `"hidden/kernel"`, of an array
        or of all under it, with `*` for any text, or several paths that make one layer, as `("Dense_0", "BatchNorm_0")`. Arrays
        in no layer are left out. None: the children of params, where these have an order: in a list, a tuple, a NamedTuple, or a
        dict of names that are alike but for a number, as `Dense_0` to `Dense_9`.
      stacked: paths, as in layers, of arrays `[L, ...]` that hold L layers along their first axis, each of which counts.

    Returns:
      `GradientNorms(norms, ratio)`, in float32 or wider; `layer_names` has the names.

    Raises:
      ValueError: if params have no such path, which the nearest is named for, or no order; if layers have arrays in common; if
        some arrays of a layer are stacked and others are not; if the loss is no scalar.
      TypeError: if loss is no function, or layers are no paths.

    References:
      Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
      https://proceedings.mlr.press/v9/glorot10a.html.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm.diagnostics import gradient_norms
      >>> def loss(weights, x):
      ...     for w in weights:
      ...         x = jax.nn.sigmoid(x @ w)
      ...     return x.mean()
      >>> weights = [jax.random.normal(key, (16, 16)) / 4 for key in jax.random.split(jax.random.key(0), 8)]
      >>> found = gradient_norms(loss, weights, jnp.ones((4, 16)))
      >>> found.norms.shape, bool(found.ratio < 1e-3)
      ((8,), True)
    """
    of_layers = layers_of(params, layers, stacked)
    norms = of_layers.norms(jax.grad(as_loss(loss))(params, batch))
    return GradientNorms(norms, norms[0] / norms[-1])


def gradient_noise(
    key: jax.Array, loss: BatchLoss, params: PyTree, data: PyTree, batch_sizes: Sequence[int], draws: int
) -> GradientNoise:
    """Returns the variance of the gradients of random batches, and their bias, for several sizes.

    With g the gradient of m examples drawn without replacement, as in an epoch, and G that of all N at once: `variance = E |g - E
    g|^2` and `square_bias = |E g - G|^2`, each estimated without bias from the draws, so that `E |g - G|^2` is their sum. For a
    loss that is a mean over examples, the bias is 0 and `variance = (N - m) / (N - 1) sigma^2 / m`, sigma^2 that of single
    examples. Under batch norm in training an example's gradient depends on the others of its batch, and small batches are biased.

    Of a model with dropout this is the noise by the choice of examples: `model_loss` has the masks of one key.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`, for the choice of examples. The batches of a size depend on the
        key and that size alone.
      loss: a function of params and a batch that returns a scalar; `model_loss` makes one of a model.
      params: parameters of the network, a tree of arrays.
      data: all examples, a tree of arrays `[N, ...]`, as a pair `(x, labels)`; the loss is called with all and with rows.
      batch_sizes: the numbers m, ints from 1 to N.
      draws: how many batches of each size, at least 2; they are computed one after another.

    Returns:
      `GradientNoise(variance, square_bias, square_norm)`, in float32 or wider.

    Raises:
      ValueError: if a size is below 1 or above N, draws below 2, or the arrays of data are not of one length; if key is an array
        of several keys; if the loss is no scalar.
      TypeError: if a size or draws is no int, key no key, or loss no function.

    References:
      Bottou, Curtis, Nocedal, "Optimization methods for large-scale machine learning", SIAM Review 60, 2018, section 4,
      https://arxiv.org/abs/1606.04838.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm.diagnostics import gradient_noise
      >>> data = jax.random.normal(jax.random.key(0), (1000, 5))
      >>> loss = lambda w, x: ((w - x) ** 2).mean() / 2
      >>> found = gradient_noise(jax.random.key(1), loss, jnp.zeros(5), data, (1, 10, 100), 500)
      >>> print((found.variance * jnp.array([1, 10, 100])).round(2))
      [0.22 0.21 0.19]
    """
    key = check_key(key)
    length = _length(data)
    sizes = [check_size("batch_sizes", size) for size in check_list("batch_sizes", batch_sizes)]
    if max(sizes) > length:
        raise ValueError(f"batch_sizes must be at most {length}, the length of data, got {max(sizes)}")
    draws = check_size("draws", draws, low=2)
    gradient = jax.grad(as_loss(loss))
    of_all = gradient(params, data)
    every = whole(params)

    def of_size(size: int) -> tuple[jax.Array, jax.Array]:
        # A number, not a key, goes through the loop: a loop over keys under an outer vmap is what jax_debug_key_reuse takes for a
        # reuse.
        own = jax.random.fold_in(key, size)

        def add(carry: tuple[PyTree, jax.Array], number: jax.Array) -> tuple[tuple[PyTree, jax.Array], None]:
            rows = jax.random.choice(jax.random.fold_in(own, number), length, (size,), replace=False)
            # About the gradient of all, so that nothing is lost where batches are much alike.
            off = difference(gradient(params, jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data)), of_all)
            return (jax.tree.map(jnp.add, carry[0], off), carry[1] + every.sums(_squares(off))[0]), None

        zeros = jax.tree.map(lambda g: jnp.zeros(g.shape, wide_dtype(g.dtype)), of_all)
        start = zeros, jnp.zeros_like(every.sums(zeros)[0])
        (total, squares), _ = lax.scan(add, start, jnp.arange(draws, dtype=jnp.int32))
        of_mean = every.sums(_squares(total))[0] / draws**2
        variance = (squares - draws * of_mean) / (draws - 1)
        return variance, of_mean - variance / draws

    variances, biases = zip(*map(of_size, sizes), strict=True)
    return GradientNoise(jnp.stack(variances), jnp.stack(biases), every.sums(_squares(of_all))[0])


def _squares(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.square(leaf.astype(wide_dtype(leaf.dtype))), tree)


def _length(data: PyTree) -> int:
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"data must be arrays of one length, along their first axis, got {sorted(lengths)}")
    ((length,),) = lengths
    return length
