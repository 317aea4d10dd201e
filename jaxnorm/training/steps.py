"""Training and evaluation steps: pure functions that users jit, vmap over seeds, or scan."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnorm._checks import check_choice, check_flag, check_size
from jaxnorm._types import wide_dtype
from jaxnorm.training.accumulation import MicrobatchStats, accumulate
from jaxnorm.training.batches import Examples, Unpack, examples_of, num_examples
from jaxnorm.training.meter import Meter
from jaxnorm.training.state import Apply, PyTree, TrainState, as_arrays, check_same_tree

Metrics = dict[str, jax.Array]
Loss = Callable[[Any, Any], jax.Array]
"""A function of `(outputs, labels)` that returns one value for each example, `[B]`."""
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
EvalStep = Callable[[TrainState, Any], Metrics]


class Trained(NamedTuple):
    """What a step of `make_train_step` was made of, its attribute `trained`: for `fit(lint=True)`, which looks at the model."""

    apply: Apply
    optimizer: optax.GradientTransformation
    schedules: Mapping[str, optax.Schedule]
    unpack: Unpack | None


_OWN = ("loss", "accuracy", "weight", "skipped")  # names of metrics that the steps give themselves


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
    metrics: Mapping[str, Loss] | None = None,
    schedules: Mapping[str, optax.Schedule] | None = None,
    unpack: Unpack | None = None,
    skip_not_finite: bool = False,
    microbatches: int = 1,
    microbatch_stats: MicrobatchStats = "micro",
) -> TrainStep:
    """Returns a training step `step(state, batch) -> (state, metrics)`: a pure function, not jitted.

    The step minimizes the mean of the examples' losses, `sum(l) / B`, with weights `sum(w l) / sum(w)` (0 if that is of
    nothing): its gradient goes to the optimizer, the statistics that the model returned become the state's. The model's key is
    `fold_in(state.key, state.step)`.

    A loss that is not finite shows as such in the metrics; with `skip_not_finite` such a step changes nothing else.

    With n microbatches the memory is that of one, and the gradient that of the whole batch's loss. Microbatch i holds rows
    `i::n`, so that devices that share the batch share each, and is given the key `fold_in(key, i)`. Where the model has
    statistics of the batch, `microbatch_stats` says of which examples:
      - "micro": each microbatch is normalized by its own, and running statistics change n times, as in n steps;
      - "pooled": each is normalized by its own, and running statistics change once, by those of the whole batch, which are
        pooled by counts;
      - "exact": all are those of the whole batch: outputs, gradient and running statistics are those of a step without
        microbatches, up to rounding (and noise, which has other keys). Each layer's statistics need those of the layers before
        it, and each one's gradient that of the layers behind it: with k batch norms the batch is gone through k times forward,
        and k + 1 times forward and backward.
    On a CPU, dense nets of 3 and 8 batch norms with 8 microbatches need an eighth of the memory for what is between; "micro" and
    "pooled" take 0.6 to 0.7 times as long as without microbatches, "exact" 2.3 and 5.7 times. (Convolutions are slow within
    XLA's loops on a CPU, up to 18 times.) "pooled" and "exact" take layers of jaxnorm, outside of loops and branches.

    A model is given a mask of padding as a part of x: the batch `((images, where), labels, weights)` calls
    `apply(key, params, stats, (images, where), train=True)`, which hands `where` to its norms, and weights of 0 leave rows out
    of the loss.

    Args:
      apply: the model, `apply(key, params, stats, x, *, train) -> (outputs, stats)`; of a Flax model, `linen_apply` or
        `nnx_apply`.
      optimizer: any Optax optimizer. One that asks for the loss, as `optax.contrib.reduce_on_plateau`, is given it.
      loss: function of `(outputs, labels)` that returns one value for each example, `[B]`.
      metrics: more such functions, by the names of the metrics that are their means:
        `{"top2": lambda outputs, labels: (jax.lax.top_k(outputs, 2)[1] == labels[:, None]).any(1)}`.
      schedules: schedules of the step, as Optax's, by the name of the argument of `apply` that each is passed as in training:
        `{"rate": optax.linear_schedule(0.0, 0.5, 1000)}` calls `apply(..., train=True, rate=...)`. The values are traced, so
        that nothing is compiled anew.
      unpack: function of a batch that returns `(x, labels)` or `(x, labels, weights)`; None for a batch that is that.
      skip_not_finite: whether the whole state, step included, stays as it was if the loss or a gradient is not finite.
      microbatches: number of microbatches, n, which divides the batch; on several devices, what each of them has.
      microbatch_stats: "micro", "pooled" or "exact".

    Returns:
      The step. A batch is any tree of arrays whose first axis is that of the examples, and so are x and labels; weights are
      `[B]`, and what they leave out still counts in the statistics of the batch, but for a `where` that says otherwise. The
      metrics are means over the batch: `loss`, `accuracy` if labels are integers and outputs have one more axis than they, the
      classes, and those of `metrics`; with weights also `weight`, their sum; with `skip_not_finite` also `skipped`, 0 or 1.

    Raises:
      ValueError: if a metric has a name of the step's own; if microbatches is below 1 or microbatch_stats none of the three.
        When the step is called or traced: if arrays differ in their number of examples, the batch is empty, microbatches do not
        divide it, a loss or metric is not `[B]`, the statistics that `apply` returns differ from the state's in tree, shape or
        dtype; or if statistics can't be pooled, as those of Flax's layers, and of layers called within loops and branches.
      TypeError: if microbatches is no int or skip_not_finite no bool; when the step is called: if the batch, or what unpack
        returns, is neither `(x, labels)` nor `(x, labels, weights)`.

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
    own_metrics, schedules = _checked_metrics(metrics), dict(schedules or {})
    skip_not_finite = check_flag("skip_not_finite", skip_not_finite)
    check_size("microbatches", microbatches)
    check_choice("microbatch_stats", microbatch_stats, ("micro", "pooled", "exact"))

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        examples, length = examples_of(batch, unpack)
        total = _total(examples, length)
        key = jax.random.fold_in(state.key, state.step)
        scheduled = {name: schedule(state.step) for name, schedule in schedules.items()}

        def objective(params: PyTree, stats: PyTree, key: jax.Array, part: Examples) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
            outputs, new_stats = apply(key, params, stats, part.x, train=True, **scheduled)
            new_stats = as_arrays("stats", new_stats)
            check_same_tree("the stats that apply returns", new_stats, state.stats, "be like those it was given")
            found = _shares({"loss": loss} | own_metrics, outputs, part, total)
            return found["loss"], (new_stats, found)

        if microbatches == 1:
            differentiate = jax.value_and_grad(objective, has_aux=True)
            (value, (stats, found)), grads = differentiate(state.params, state.stats, key, examples)
        elif length % microbatches:
            raise ValueError(f"microbatches must divide the batch of {length} examples, got {microbatches}")
        else:
            value, stats, found, grads = accumulate(
                objective, state.params, state.stats, key, examples, microbatches, microbatch_stats
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, state.key, params, stats, opt_state)
        if skip_not_finite:
            is_finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(part)) for part in (value, *jax.tree.leaves(grads))]))
            new = jax.tree.map(functools.partial(_selected, is_finite), new, state)
            found |= {"skipped": 1 - is_finite.astype(jnp.float32)}
        return new, found

    step.trained = Trained(apply, optimizer, schedules, unpack)  # pyright: ignore[reportFunctionMemberAccess]
    return step


def make_eval_step(
    apply: Apply,
    *,
    loss: Loss = cross_entropy,
    metrics: Mapping[str, Loss] | None = None,
    unpack: Unpack | None = None,
) -> EvalStep:
    """Returns an evaluation step `evaluate(state, batch) -> metrics`: a pure function, not jitted.

    The model runs with `train=False`: with the running statistics, without dropout, and nothing is changed.

    Args:
      apply: the model, as in `make_train_step`.
      loss: function of `(outputs, labels)` that returns one value for each example, `[B]`.
      metrics: more such functions by name, as in `make_train_step`.
      unpack: function of a batch, as in `make_train_step`.

    Returns:
      The step; its metrics are those of `make_train_step`. Over batches of unequal size or weight `evaluate_batches` averages
      them.

    Raises:
      ValueError: if a metric has a name of the step's own; when the step is called or traced, as in `make_train_step`.
      TypeError: likewise.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxnorm.training import init_train_state, make_eval_step
      >>> evaluate = jax.jit(make_eval_step(lambda key, params, stats, x, *, train: (x @ params, stats)))
      >>> state = init_train_state(jax.random.key(0), jnp.zeros((3, 2)), (), optax.sgd(0.1))
      >>> evaluate(state, (jnp.ones((4, 3)), jnp.array([0, 1, 1, 1])))["accuracy"]
      Array(0.25, dtype=float32)
    """
    own_metrics = _checked_metrics(metrics)

    def evaluate(state: TrainState, batch: Any) -> Metrics:
        examples, length = examples_of(batch, unpack)
        outputs, _ = apply(state.key, state.params, state.stats, examples.x, train=False)
        return _shares({"loss": loss} | own_metrics, outputs, examples, _total(examples, length))

    return evaluate


def evaluate_batches(evaluate: EvalStep, state: TrainState, batches: Iterable[Any]) -> dict[str, float]:
    """Returns the mean metrics over all examples of all batches, whatever their sizes.

    `sum(B_i metrics_i) / sum(B_i)`, in double precision; of batches with weights `B_i` is the sum of these, which is no mean.

    Args:
      evaluate: an evaluation step, jitted or not.
      state: the state to evaluate.
      batches: iterable of batches.

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
    meter, number = Meter("evaluation batch"), 0
    for number, batch in enumerate(batches, 1):
        meter.add(evaluate(state, batch), (num_examples(batch),), number)
    if number == 0:
        raise ValueError("batches must hold at least one batch to evaluate, got none (an iterator gives them only once)")
    return meter.means()


def check_batch(batch: Any) -> int:
    """Returns the number of examples of a batch, or raises unless it is a pair of arrays of so many, at least one."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        length = f" of length {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise TypeError(f"batch must be a pair (x, labels), got {type(batch).__name__}{length}")
    return examples_of(batch, None)[1]


def mean_loss(loss: Loss, outputs: Any, labels: Any, length: int) -> jax.Array:
    """Returns the mean of the examples' losses, or raises unless there are so many."""
    return _share("loss", loss(outputs, labels), None, length, length)


def _selected(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Returns one of two parts of a state; keys by their data, as one whose draws came to nothing may be used again."""
    if not jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return jnp.where(condition, new, old)
    data = jnp.where(condition, jax.random.key_data(new), jax.random.key_data(old))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(old))


def _checked_metrics(metrics: Mapping[str, Loss] | None) -> dict[str, Loss]:
    metrics = dict(metrics or {})
    if taken := sorted(metrics.keys() & set(_OWN)):
        raise ValueError(f"metrics must have other names than the step's own ({', '.join(_OWN)}), got {taken}")
    return metrics


def _total(examples: Examples, length: int) -> Any:
    """Returns by what sums over the examples are divided: their number, or the sum of their weights, but 1 if that is 0."""
    if examples.weights is None:
        return length
    total = jnp.sum(examples.weights, dtype=jnp.float32)
    return jnp.where(total == 0, jnp.ones_like(total), total)


def _shares(functions: Mapping[str, Loss], outputs: Any, part: Examples, total: Any) -> Metrics:
    """Returns what a part of a batch, or all of it, adds to the batch's metrics."""
    length = num_examples(part)
    values = {name: function(outputs, part.labels) for name, function in functions.items()}
    if (right := _right(outputs, part.labels)) is not None:
        values["accuracy"] = right
    found = {name: _share(name, value, part.weights, length, total) for name, value in values.items()}
    return found if part.weights is None else found | {"weight": jnp.sum(part.weights, dtype=jnp.float32)}


def _share(name: str, values: Any, weights: Any, length: int, total: Any) -> jax.Array:
    """Returns `sum(w v) / total` of one value for each example, or raises unless there are so many."""
    if jnp.shape(values) != (length,):
        raise ValueError(f"{name} must return one value for each example, shape [{length}], got shape {list(jnp.shape(values))}")
    values = jnp.asarray(values, jnp.promote_types(jnp.result_type(values), jnp.float32))
    if weights is not None:
        values = jnp.where(weights != 0, weights * values, jnp.zeros_like(values))  # of what does not count NaN is nothing
    return jnp.sum(values) / total


def _right(outputs: Any, labels: Any) -> jax.Array | None:
    """Returns of every example the share of right classes, or None where outputs and labels are no classes."""
    if not _are_logits(outputs, labels) or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        return None
    right = jnp.argmax(outputs, -1) == labels
    return jnp.mean(right, tuple(range(1, right.ndim)), dtype=jnp.float32)


def _are_logits(outputs: Any, labels: Any) -> bool:
    """Whether both are arrays, and outputs has one more axis than labels, the last."""
    arrays = hasattr(outputs, "shape") and hasattr(labels, "shape")
    return arrays and outputs.shape[:-1] == labels.shape and outputs.ndim == labels.ndim + 1
