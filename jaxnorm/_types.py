"""The containers that layers pass around: parameters and running statistics."""

from typing import NamedTuple

import jax


class AffineParams(NamedTuple):
    """Scale and bias of a normalization layer, `[C]` each; a part that is not used is None."""

    scale: jax.Array | None
    bias: jax.Array | None


class RunningStats(NamedTuple):
    """Running mean and variance of a normalization layer, `[C]` each, in float32 or wider."""

    mean: jax.Array
    var: jax.Array
