"""Internal covariate shift: how far updates of the layers before it change what a layer's gradient was."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.diagnostics._layers import Layer, difference, layers_of
from jaxnorm.diagnostics.models import BatchLoss, PyTree, as_loss
from jaxnorm.training.state import as_arrays, check_same_tree


class InternalCovariateShift(NamedTuple):
    """How a layer's gradient changes with the layers before it, from the first layer to the last, `[layers]` each.

    Attributes:
      difference: l2 norm of the difference between the gradients after and before; 0 of the first layer.
      relative: the difference over the norm of the gradient before; 0 where there is none.
      cosine: of the angle between the two gradients, 1 where there is no shift; NaN where one of them is 0.
    """

    difference: jax.Array
    relative: jax.Array
    cosine: jax.Array


def internal_covariate_shift(
    loss: BatchLoss,
    params: PyTree,
    updated: PyTree,
    batch: Any,
    *,
    layers: Sequence[Layer] | None = None,
    stacked: str | Sequence[str] = (),
) -> InternalCovariateShift:
    """Returns how far the gradient of each layer moves when the layers before it are updated, on the same batch.

    `G_i = dL/dW_i (W_1, ..., W_k)` and `G'_i = dL/dW_i (W'_1, ..., W'_{i-1}, W_i, ..., W_k)`, with W' the updated parameters:
    `difference = |G'_i - G_i|_2`, `relative = difference / |G_i|_2`, `cosine = <G_i, G'_i> / (|G_i| |G'_i|)`.

    The updated parameters are those after an optimizer's step, or after any number of steps. The paper found that batch norm
    need not make this smaller where it makes training faster. There is one gradient of the network for each layer.

    Args:
      loss: a function of params and a batch that returns a scalar; `model_loss` makes one of a model.
      params: parameters of the network before the update, a tree of arrays.
      updated: the parameters after it, a tree like params.
      batch: what loss takes; that of the update.
      layers: the layers from the first to the last, as in `gradient_norms`. Arrays in none stay as they were.
      stacked: paths of arrays `[L, ...]` that hold L layers along their first axis, as in `gradient_norms`.

    Returns:
      `InternalCovariateShift(difference, relative, cosine)`, in float32 or wider; `layer_names` has the names.

    Raises:
      ValueError: if updated is another tree than params, or of other shapes; else as in `gradient_norms`.
      TypeError: as in `gradient_norms`.

    References:
      Santurkar, Tsipras, Ilyas, Madry, "How does batch normalization help optimization?", NeurIPS 2018, definition 2.1,
      https://arxiv.org/abs/1805.11604. The relative difference is an addition.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm.diagnostics import internal_covariate_shift
      >>> loss = lambda w, x: (w[1] * w[0] * x) ** 2 / 2
      >>> print(internal_covariate_shift(loss, [jnp.array(1.0), jnp.array(1.0)], [jnp.array(2.0), jnp.array(2.0)], 1.0))
      InternalCovariateShift(difference=Array([0., 3.], dtype=float32), relative=Array([0., 3.], dtype=float32),
                             cosine=Array([1., 1.], dtype=float32))
    """
    params, updated = as_arrays("params", params), as_arrays("updated", updated)
    check_same_tree("updated", updated, params, "be like params")
    of_layers = layers_of(params, layers, stacked)
    gradient = jax.grad(as_loss(loss))

    def of_layer(before: PyTree, number: jax.Array) -> tuple[PyTree, tuple[jax.Array, ...]]:
        after = gradient(of_layers.blend(number, updated, params), batch)
        # Nothing is before the first layer: its turn gives the gradient that the others are compared with, in one program.
        before = jax.tree.map(lambda old, new: jnp.where(number == 0, new, old), before, after)
        found = of_layers.norms(difference(after, before)), of_layers.norms(before), of_layers.cosines(before, after)
        return before, tuple(part[number] for part in found)

    numbers = jnp.arange(len(of_layers.names), dtype=jnp.int32)
    _, (moved, size, cosine) = lax.scan(of_layer, jax.tree.map(jnp.zeros_like, params), numbers)
    return InternalCovariateShift(moved, jnp.where(moved == 0, 0, moved / size), cosine)
