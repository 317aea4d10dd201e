"""Parameters and statistics from and to PyTorch, Keras, haiku, equinox and Flax, and what checkpoints hold.

What another library keeps of a norm, as a plain dict of NumPy arrays, becomes the parameters and state of the function here, and
goes back; none of these libraries is imported. `presets` gives the options, as momentum and epsilon, with which training goes on
as there:

>>> import jax.numpy as jnp, jaxnorm, numpy as np
>>> from jaxnorm.interop import from_torch, presets, to_linen
>>> ones = np.ones(3, np.float32)
>>> entries = {"weight": ones, "bias": ones, "running_mean": ones, "running_var": ones}  # of a torch.nn.BatchNorm1d
>>> params, state = from_torch(entries)
>>> x = jnp.arange(12.0).reshape(4, 3)
>>> y, state = jaxnorm.batch_norm(params, state, x, train=True, **presets("torch"))
>>> print(state.mean, state.var)  # of x: means 4.5, 5.5 and 6.5, unbiased variance 15
[1.35 1.45 1.55] [2.4 2.4 2.4]
>>> variables = to_linen(params, state)

A whole torch model, of a dict of NumPy arrays or a safetensors file, becomes a Flax model in one call:

>>> from flax import nnx
>>> from jaxnorm.interop import from_torch_model
>>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
>>> state_dict = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}
>>> model, report = from_torch_model(state_dict, model)
>>> print(model.layers[0].kernel[...])
[[1. 1.]
 [1. 1.]
 [1. 1.]]
"""

from jaxnorm.interop.checkpoints import NormSummary, inspect_checkpoint
from jaxnorm.interop.equinox import from_equinox, to_equinox
from jaxnorm.interop.flax import from_linen, from_nnx, to_linen, to_nnx
from jaxnorm.interop.haiku import from_haiku, to_haiku
from jaxnorm.interop.keras import from_keras, to_keras
from jaxnorm.interop.models import from_torch_model, to_torch_model, variables_from_torch
from jaxnorm.interop.presets import presets
from jaxnorm.interop.report import Match, ModelReport
from jaxnorm.interop.torch import from_torch, to_torch

__all__ = [
    "Match",
    "ModelReport",
    "NormSummary",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_torch",
    "from_torch_model",
    "inspect_checkpoint",
    "presets",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_torch",
    "to_torch_model",
    "variables_from_torch",
]
