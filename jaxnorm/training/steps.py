"""Training and evaluation steps: pure functions that users jit, vmap over seeds, or scan."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnorm._types import wide_dtype
from jaxnorm.training.data import Batch, num_examples
from jaxnorm.training.meter import Meter
from jaxnorm.training.state import PyTree, TrainState, as_arrays, check_same_tree

Metrics = dict[str, jax.Array]
Loss = Callable[[Any, Any], jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[TrainState, Batch], Metrics]
Apply = Callable[..., tuple[Any, PyTree]]
"""A model: `apply(key, params, stats, x, *, train) -> (outputs, stats)`.

The key is for dropout, and nothing is drawn from it with `train=False`. What `schedules` names comes as keyword arguments, in
training only.
"""


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross entropy of every example's label under the softmax of its outputs.

    `-log softmax(outputs)[label] = logsumexp(outputs) - outputs[label]`.

    Args:
      outputs: logits, `[B, classes]`.
      labels: indices of the classes, integers `[B]`; one outside `[0, classes)` gives NaN.

    Returns:
      Losses, `[B]`, in float32 or wider.

    Raises:
      TypeError: if labels are not integers.
      ValueError: if outputs are not `[B, classes]` for labels `[B]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.training import cross_entropy
      >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))
      Array([1.3862944], dtype=float32)
    """
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise TypeError(
            f"labels must be integers for the default loss, got {jnp.result_type(labels)}{list(jnp.shape(labels))}; "
            "give loss=, a function of (outputs, labels) that returns one value for each example"
        )
    if not _are_logits(outputs, labels) or jnp.ndim(labels) != 1:
        raise ValueError(
            f"outputs must have shape [B, classes] and labels [B] for the default loss, got {jnp.shape(outputs)} "
            f"and {jnp.shape(labels)}"
        )
    # A comparison instead of an index: the gradient of indexing has no sharding of its own on a mesh with explicit axes.
    outputs = outputs.astype(wide_dtype(outputs.dtype))
    chosen = labels[:, None] == jnp.arange(outputs.shape[1], dtype=labels.dtype)[None]
    picked = jnp.where(chosen.any(1), jnp.where(chosen, outputs, 0).sum(1), jnp.nan)
    return jax.nn.logsumexp(outputs, axis=1) - picked


def make_train_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    loss: Loss = cross_entropy,
    schedules: Mapping[str, optax.Schedule] | None = None,
) -> TrainStep:
    """Returns a training step `step(state, batch) -> (state, metrics)`: a pure function, not jitted.

    The step minimizes the mean of the examples' losses: its gradient goes to the optimizer, the statistics that the model
    returned become the state's. The model's key is `fold_in(state.key, state.step)`.

    A loss that is not finite shows as such in the metrics. The running statistics of `jaxnorm.batch_norm` do not take up a
    batch that is not finite, so an optimizer wrapped in `optax.apply_if_finite`, which skips such a gradient, leaves nothing of
    it behind.

    Args:
      apply: the model, `apply(key, params, stats, x, *, train) -> (outputs, stats)`; of a Flax model, `linen_apply` or
        `nnx_apply`.
      optimizer: any Optax optimizer. One that asks for the loss, as `optax.contrib.reduce_on_plateau`, is given it.
      loss: function of `(outputs, labels)` that returns one value for each example, `[B]`.
      schedules: schedules of the step, as Optax's, by the name of the argument of `apply` that each is passed as in training:
        `{"rate": optax.linear_schedule(0.0, 0.5, 1000)}` calls `apply(..., train=True, rate=...)`. The values are traced, so
        that nothing is compiled anew.

    Returns:
      The step. A batch is a pair `(x, labels)`, arrays or pytrees of arrays whose first axis is that of the examples. The
      metrics are the batch's mean `loss`, and `accuracy` if labels are integers and outputs have one more axis than they, the
      classes.

    Raises:
      ValueError: when the step is called or traced: if x and labels differ in length, the batch is empty, the losses are not
        `[B]`, or the statistics that `apply` returns differ from the state's in tree, shape or dtype.
      TypeError: likewise, if the batch is no pair.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxnorm.training import init_train_state, make_train_step
      >>> def apply(key, params, stats, x, *, train):
      ...     return x @ params, stats
      >>> optimizer = optax.sgd(0.1)
      >>> step = jax.jit(make_train_step(apply, optimizer))
      >>> state = init_train_state(jax.random.key(0), jnp.zeros((3, 2)), (), optimizer)
      >>> state, metrics = step(state, (jnp.ones((4, 3)), jnp.array([0, 1, 1, 1])))
      >>> print(f"{metrics['loss']:.3f}, {metrics['accuracy']:.2f}")
      0.693, 0.25
    """
    optimizer = optax.with_extra_args_support(optimizer)
    schedules = dict(schedules or {})

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        length, (x, labels) = check_batch(batch), batch
        key = jax.random.fold_in(state.key, state.step)
        scheduled = {name: schedule(state.step) for name, schedule in schedules.items()}

        def objective(params: PyTree) -> tuple[jax.Array, tuple[Any, PyTree]]:
            outputs, stats = apply(key, params, state.stats, x, train=True, **scheduled)
            return mean_loss(loss, outputs, labels, length), (outputs, stats)

        (value, (outputs, stats)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        stats = as_arrays("stats", stats)
        check_same_tree("the stats that apply returns", stats, state.stats, "be like those it was given")
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, state.key, params, stats, opt_state)
        return new, {"loss": value} | _accuracy(outputs, labels)

    return step


def make_eval_step(apply: Apply, *, loss: Loss = cross_entropy) -> EvalStep:
    """Returns an evaluation step `evaluate(state, batch) -> metrics`: a pure function, not jitted.

    The model runs with `train=False`: with the running statistics, without dropout, and nothing is changed.

    Args:
      apply: the model, as in `make_train_step`.
      loss: function of `(outputs, labels)` that returns one value for each example, `[B]`.

    Returns:
      The step; its metrics are the batch's mean `loss`, and `accuracy` where labels are classes. Over batches of unequal size
      `evaluate_batches` averages them.

    Raises:
      ValueError: when the step is called or traced, as in `make_train_step`.
      TypeError: likewise.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxnorm.training import init_train_state, make_eval_step
      >>> evaluate = jax.jit(make_eval_step(lambda key, params, stats, x, *, train: (x @ params, stats)))
      >>> state = init_train_state(jax.random.key(0), jnp.zeros((3, 2)), (), optax.sgd(0.1))
      >>> evaluate(state, (jnp.ones((4, 3)), jnp.array([0, 1, 1, 1])))["accuracy"]
      Array(0.25, dtype=float32)
    """

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        length, (x, labels) = check_batch(batch), batch
        outputs, _ = apply(state.key, state.params, state.stats, x, train=False)
        return {"loss": mean_loss(loss, outputs, labels, length)} | _accuracy(outputs, labels)

    return evaluate


def evaluate_batches(evaluate: EvalStep, state: TrainState, batches: Iterable[Batch]) -> dict[str, float]:
    """Returns the mean metrics over all examples of all batches, whatever their sizes.

    `sum(B_i metrics_i) / sum(B_i)`, in double precision.

    Args:
      evaluate: an evaluation step, jitted or not.
      state: the state to evaluate.
      batches: iterable of `(x, labels)`.

    Returns:
      The means, by the names of the metrics.

    Raises:
      ValueError: if there is no batch.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxnorm.training import evaluate_batches, init_train_state, make_eval_step
      >>> evaluate = jax.jit(make_eval_step(lambda key, params, stats, x, *, train: (x @ params, stats)))
      >>> state = init_train_state(jax.random.key(0), jnp.zeros((3, 2)), (), optax.sgd(0.1))
      >>> batches = [(jnp.ones((3, 3)), jnp.array([0, 0, 0])), (jnp.ones((1, 3)), jnp.array([1]))]
      >>> evaluate_batches(evaluate, state, batches)["accuracy"]
      0.75
    """
    meter = Meter("evaluation batch")
    for number, batch in enumerate(batches, 1):
        meter.add(evaluate(state, batch), num_examples(batch), number)
    if meter.count == 0:
        raise ValueError("batches must hold at least one batch to evaluate, got none (an iterator gives them only once)")
    return meter.means()


def check_batch(batch: Batch) -> int:
    """Returns the number of examples of a batch, or raises unless it is a pair of arrays of so many, at least one."""
    length = num_examples(batch)
    if length == 0:
        raise ValueError("batch must hold at least one example, got 0")
    return length


def mean_loss(loss: Loss, outputs: Any, labels: Any, length: int) -> jax.Array:
    """Returns the mean of the examples' losses, or raises unless there are so many."""
    losses = loss(outputs, labels)
    if jnp.shape(losses) != (length,):
        raise ValueError(f"loss must return one value for each example, shape [{length}], got shape {list(jnp.shape(losses))}")
    return jnp.mean(losses, dtype=jnp.promote_types(losses.dtype, jnp.float32))


def _accuracy(outputs: Any, labels: Any) -> Metrics:
    """Returns the share of right classes, or nothing where outputs and labels are no classes."""
    if not _are_logits(outputs, labels) or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        return {}
    return {"accuracy": jnp.mean(jnp.argmax(outputs, -1) == labels, dtype=jnp.float32)}


def _are_logits(outputs: Any, labels: Any) -> bool:
    """Whether both are arrays, and outputs has one more axis than labels, the last."""
    arrays = hasattr(outputs, "shape") and hasattr(labels, "shape")
    return arrays and outputs.shape[:-1] == labels.shape and outputs.ndim == labels.ndim + 1
