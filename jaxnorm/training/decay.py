"""What an optimizer should not draw to 0: scales and biases."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.training.state import PyTree

_SPARED = ("scale", "bias", "offset")  # of several axes too: stacked for a scan, of conditions, of heads, of Haiku's batch norm


def no_decay_mask(params: PyTree) -> PyTree:
    """Returns for an Optax mask which parameters decay: not scales and biases of norms, other biases and scalars.

    A parameter decays, `True`, if it has two axes or more and its name is none of `scale`, `bias` and `offset`. So kernels and
    tables of embeddings decay; vectors and scalars do not, nor scales and biases that have more axes because they are stacked for
    `nn.scan`, of conditions, of attention's heads, or of Haiku's batch norm, `[1, C]`.

    Args:
      params: the parameters: a tree of arrays of linen, of nnx or one's own.

    Returns:
      A tree of bools like params. The function itself may be the mask: `optax.adamw(1e-3, mask=no_decay_mask)`.

    References:
      He, Zhang, Zhang, Zhang, Xie, Li, "Bag of tricks for image classification with convolutional neural networks", CVPR 2019,
      section 3.1, https://arxiv.org/abs/1812.01187.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.training import no_decay_mask
      >>> no_decay_mask({"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "norm": jaxnorm.init_layer_norm(2)})
      {'dense': {'bias': False, 'kernel': True}, 'norm': AffineParams(scale=False, bias=False)}
    """
    return jax.tree_util.tree_map_with_path(lambda path, param: jnp.ndim(param) >= 2 and _name(path) not in _SPARED, params)


def _name(path: Any) -> str:
    """Returns the name of a parameter, whether or not it is in a box; weight norm's are the last part of a path."""
    names = [name for name in (str(getattr(key, "key", getattr(key, "name", ""))) for key in path) if name not in ("value", "")]
    return names[-1].rpartition("/")[2] if names else ""
