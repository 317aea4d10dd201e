"""Training: a state, steps that are pure functions, a loop with checkpoints, and Flax models as functions.

A model is a function `apply(key, params, stats, x, *, train) -> (outputs, stats)`. `fit` trains it with a progress bar,
evaluation and checkpoints, on one device or many, in one process or many; a loop of one's own takes ten lines:

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

Many devices, many processes
============================

The same program runs in every process. What differs is which rows of the data a process reads, and which one writes.

    with connect():  # before anything asks jax for its devices
        layout = Layout(jax.make_mesh((jax.device_count(),), ("data",)))  # the devices of all processes
        state = init_train_state(...)  # built alike in all processes
        batches = shuffled_batches(...)  # each process gives its own rows of every batch
        fit(state, step, batches, layout=layout, epochs=90, checkpoints="/shared/run", resume=...)

In a loop of one's own, `shard_state(state, layout)` and `shard_batch(batch, layout)` put arrays where they belong.

Processes are told of each other in one of three ways:

- by arguments, `connect("10.0.0.1:1234", num_processes, process_id)`, or by the environment: `JAX_COORDINATOR_ADDRESS`,
  `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. The address is that of process 0, with a port that is free there.
- by what started them, which jax detects itself: SLURM, Open MPI, Kubernetes, a pod of TPUs.
- by nothing: then the program is one process, and all of it runs as before.

On hosts with GPUs under SLURM, `srun --ntasks-per-node=8 --gpus-per-node=8 python train.py` starts a process for each GPU, which
jax then gives it. On a TPU pod, the same command on every host starts it, as
`gcloud compute tpus tpu-vm ssh NAME --worker=all --command="python train.py"`; a process there has all the chips of its host. On
machines of one's own, each process has the three variables, and a process for each of several GPUs of a host has
`CUDA_VISIBLE_DEVICES`, so that it leaves the others alone.

Checkpoints are written by all processes together, and read by all: their folder must be on a disk that all share, under the same
path. Data may be on a disk that is shared, or copied to each host; every process reads its own rows only. All must have the same
versions of jax and of the program.

All processes must take the same steps, evaluations and checkpoints, in the same order, on batches of the same size. One that has
less of them is noticed where batches change their size and at the end of an epoch, where the others wait ten minutes for it and
then end. What is for one alone, as printing, stands under `if jax.process_index() == 0`; hooks run in all. On CPUs, the first
exchange must find all processes within half a minute.

jax takes SIGTERM, by which a scheduler says that it will end a job: `fit` saves and leaves at the next step that all processes
reach, whichever of them has got the signal. Code around it goes on until the scheduler ends it for good.

A process that ends by an exception prints it and leaves at once with status 1; the others then lose touch with it and end too, at
the latest when `heartbeat` seconds have passed. A scheduler that starts all of them again, with `resume`, goes on from the newest
checkpoint.
"""

from jaxnorm.training.accumulation import AccumulatedStats, accumulate_stats
from jaxnorm.training.adapters import linen_apply, nnx_apply
from jaxnorm.training.averages import average_params, averaged_params, averaged_state
from jaxnorm.training.checkpoint_writer import CheckpointWriter
from jaxnorm.training.checkpoints import Checkpoint, best_step, latest_step, load_checkpoint, load_newest, save_checkpoint
from jaxnorm.training.constraints import max_norm
from jaxnorm.training.data import ordered_batches, shuffled_batches
from jaxnorm.training.decay import no_decay_mask
from jaxnorm.training.grain_batches import GrainBatches
from jaxnorm.training.history import plot_history, read_history, write_history
from jaxnorm.training.hooks import Hook, Status, StopTraining
from jaxnorm.training.loop import fit
from jaxnorm.training.precision import mixed_precision
from jaxnorm.training.processes import connect
from jaxnorm.training.readers import read_cifar10, read_idx, read_mnist
from jaxnorm.training.replicas import check_keys_differ, check_replicas
from jaxnorm.training.sharding import Layout, shard_batch, shard_state, state_shardings
from jaxnorm.training.sources import ImageFolder, NpzFolder
from jaxnorm.training.state import TrainState, init_train_state
from jaxnorm.training.steps import cross_entropy, evaluate_batches, make_eval_step, make_train_step
from jaxnorm.training.writers import TensorBoardWriter

__all__ = [
    "AccumulatedStats",
    "Checkpoint",
    "CheckpointWriter",
    "GrainBatches",
    "Hook",
    "ImageFolder",
    "Layout",
    "NpzFolder",
    "Status",
    "StopTraining",
    "TensorBoardWriter",
    "TrainState",
    "accumulate_stats",
    "average_params",
    "averaged_params",
    "averaged_state",
    "best_step",
    "check_keys_differ",
    "check_replicas",
    "connect",
    "cross_entropy",
    "evaluate_batches",
    "fit",
    "init_train_state",
    "latest_step",
    "linen_apply",
    "load_checkpoint",
    "load_newest",
    "make_eval_step",
    "make_train_step",
    "max_norm",
    "mixed_precision",
    "nnx_apply",
    "no_decay_mask",
    "ordered_batches",
    "plot_history",
    "read_cifar10",
    "read_history",
    "read_idx",
    "read_mnist",
    "save_checkpoint",
    "shard_batch",
    "shard_state",
    "shuffled_batches",
    "state_shardings",
    "write_history",
]
