"""Training of a network for every seed and every value of something: learning rates, sizes, orders of the examples."""

from collections.abc import Callable
from typing import Any

import jax

from jaxnorm.experiments._training import grid, over_seeds, train, ungrid
from jaxnorm.training import TrainState
from jaxnorm.training.data import Batch


def sweep(
    keys: jax.Array, values: Any, model: Callable[[Any], Any], optimizer: Callable[[Any], Any], data: Batch, **options: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns what `train` does, of a network for every seed and value: all arrays are `[seeds, values, ...]`.

    Args:
      keys: of the seeds.
      values: an array of numbers, which are traced.
      model: makes a model, with `init(key)` and `apply`, of a value.
      optimizer: makes an optimizer of a value.
      data: `(x, labels)`, the training set.
      **options: of `train`. An `order` is given the network's number, which is `seed * len(values) + place of the value`.
    """
    init_keys, train_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    init_keys, own = grid(init_keys, values)
    train_keys, _ = grid(train_keys, values)
    initial = over_seeds(lambda key, value: model(value).init(key))(init_keys, own)
    trained = train(lambda value: model(value).apply, optimizer, train_keys, initial, data, each=own, **options)
    return ungrid(trained, len(values))
