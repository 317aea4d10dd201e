"""Training: a state, steps that are pure functions, a loop with checkpoints, and Flax models as functions.

A model is a function `apply(key, params, stats, x, *, train) -> (outputs, stats)`. `fit` trains it with a progress bar,
evaluation and checkpoints; a loop of one's own takes ten lines:

>>> import jax, jax.numpy as jnp, jaxnorm, optax
>>> from jaxnorm.training import init_train_state, make_train_step, shuffled_batches
>>> def apply(key, params, stats, x, *, train):
...     x, stats = jaxnorm.batch_norm(params["norm"], stats, x @ params["w"], train=train)
...     x = jax.nn.relu(x)
...     return (jaxnorm.dropout(key, x, 0.2) if train else x) @ params["out"], stats
>>> norm, stats = jaxnorm.init_batch_norm(16)
>>> x = jax.random.normal(jax.random.key(0), (256, 4))
>>> labels = (x.sum(axis=1) > 0).astype(int)
>>> w, out = (0.3 * jax.random.normal(jax.random.key(i), shape) for i, shape in ((1, (4, 16)), (2, (16, 2))))

>>> optimizer = optax.adam(1e-2)
>>> step = jax.jit(make_train_step(apply, optimizer), donate_argnums=0)
>>> state = init_train_state(jax.random.key(3), {"norm": norm, "w": w, "out": out}, stats, optimizer)
>>> batches = shuffled_batches(jax.random.key(4), x, labels, batch_size=32, drop_remainder=True)
>>> for epoch in range(10):
...     for batch in batches(epoch):
...         state, metrics = step(state, batch)
>>> bool(metrics["accuracy"] > 0.8)
True
"""

from jaxnorm.training.adapters import linen_apply, nnx_apply
from jaxnorm.training.checkpoints import Checkpoint, latest_step, load_checkpoint, save_checkpoint
from jaxnorm.training.constraints import max_norm
from jaxnorm.training.data import ordered_batches, shuffled_batches
from jaxnorm.training.decay import no_decay_mask
from jaxnorm.training.loop import fit
from jaxnorm.training.state import TrainState, init_train_state
from jaxnorm.training.steps import cross_entropy, evaluate_batches, make_eval_step, make_train_step

__all__ = [
    "Checkpoint",
    "TrainState",
    "cross_entropy",
    "evaluate_batches",
    "fit",
    "init_train_state",
    "latest_step",
    "linen_apply",
    "load_checkpoint",
    "make_eval_step",
    "make_train_step",
    "max_norm",
    "nnx_apply",
    "no_decay_mask",
    "ordered_batches",
    "save_checkpoint",
    "shuffled_batches",
]
