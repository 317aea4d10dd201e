"""Norms for the perceptrons of experiments, beside batch norm."""

from collections.abc import Callable
from typing import Any

import jax

from jaxnorm import (
    batch_norm,
    batch_renorm,
    ghost_batch_norm,
    group_norm,
    init_batch_renorm,
    init_ghost_batch_norm,
    init_group_norm,
    init_layer_norm,
    init_lp_batch_norm,
    init_noisy_batch_norm,
    layer_norm,
    lp_batch_norm,
    noisy_batch_norm,
)
from jaxnorm.experiments._mlp import Norm


def lp_batch_norms(p: float, momentum: float = 0.95) -> Norm:
    """Returns batch norm by the l_p deviation."""
    return Norm(
        init_lp_batch_norm, lambda params, stats, x, **rest: lp_batch_norm(params, stats, x, p, momentum=momentum, **rest)
    )


def batch_renorms(momentum: float = 0.95, **options: Any) -> Norm:
    """Returns batch renormalization."""
    return Norm(
        init_batch_renorm,
        lambda params, stats, x, **rest: batch_renorm(params, stats, x, momentum=momentum, **options, **rest),
    )


def ghost_batch_norms(size: int, momentum: float = 0.95) -> Norm:
    """Returns ghost batch norm."""
    return Norm(
        init_ghost_batch_norm,
        lambda params, stats, x, **rest: ghost_batch_norm(params, stats, x, size, momentum=momentum, **rest),
    )


def noisy_batch_norms(momentum: float = 0.95) -> Norm:
    """Returns batch norm whose output is shifted and scaled at random in training."""

    def apply(params: Any, stats: Any, x: jax.Array, *, train: bool, key: jax.Array | None) -> tuple[jax.Array, Any]:
        if key is None:
            return batch_norm(params, stats, x, train=train, momentum=momentum)
        return noisy_batch_norm(key, params, stats, x, train=train, momentum=momentum)

    return Norm(init_noisy_batch_norm, apply, is_noisy=True)


def layer_norms() -> Norm:
    """Returns layer norm."""
    return _of_examples(init_layer_norm, layer_norm)


def group_norms(groups: int) -> Norm:
    """Returns group norm."""
    return _of_examples(init_group_norm, lambda params, x: group_norm(params, x, groups))


def _of_examples(init: Callable[[int], Any], norm: Callable[[Any, jax.Array], jax.Array]) -> Norm:
    """Returns a norm of every example by itself, the same in training and inference."""
    return Norm(lambda size: (init(size), ()), lambda params, stats, x, *, train: (norm(params, x), stats))
