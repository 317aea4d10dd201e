import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnorm
from jaxnorm.training import cross_entropy, evaluate_batches, init_train_state, make_eval_step, make_train_step, ordered_batches


def linear(key, params, stats, x, *, train):
    return x @ params, stats


def start(net, optimizer, seed=0):
    return init_train_state(jax.random.key(seed), net.params, net.stats, optimizer)


def test_a_step_of_gradient_descent_by_hand(data):
    x, labels = data
    w = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    state = init_train_state(jax.random.key(0), w, (), optax.sgd(0.5))
    new, metrics = make_train_step(linear, optax.sgd(0.5))(state, data)

    logits = x.astype(np.float64) @ w
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    one_hot = np.eye(3)[labels]
    np.testing.assert_allclose(metrics["loss"], -np.log((p * one_hot).sum(1)).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (p.argmax(1) == labels).mean(), rtol=1e-6)
    np.testing.assert_allclose(new.params, w - 0.5 * x.T.astype(np.float64) @ (p - one_hot) / 90, rtol=1e-4, atol=1e-5)


def test_statistics_are_those_of_the_batch(net, data):
    new, _ = make_train_step(net.apply, optax.sgd(0.1))(start(net, optax.sgd(0.1)), data)
    hidden = data[0].astype(np.float64) @ np.asarray(net.params["w"], np.float64)
    np.testing.assert_allclose(new.stats.mean, 0.1 * hidden.mean(0), rtol=1e-4)
    np.testing.assert_allclose(new.stats.var, 0.9 + 0.1 * hidden.var(0), rtol=1e-4)


@pytest.mark.parametrize("key", [jax.random.key(5), jax.random.PRNGKey(5)], ids=repr)
def test_the_key_of_a_step_is_folded_in(key):
    def apply(key, params, stats, x, *, train):
        return x @ params, jax.random.uniform(key, (4,))

    state = init_train_state(key, jnp.ones((5, 3)), jnp.zeros(4), optax.sgd(0.1))
    step = make_train_step(apply, optax.sgd(0.1))
    for number in range(3):
        state, _ = step(state, (jnp.ones((2, 5)), jnp.array([0, 1])))
        np.testing.assert_array_equal(state.stats, jax.random.uniform(jax.random.fold_in(key, number), (4,)))


def test_vmap_over_seeds_and_scan_over_steps(net, data):
    optimizer = optax.adam(0.01)
    step = make_train_step(net.apply, optimizer)
    batches = tuple(a[:80].reshape(4, 20, *a.shape[1:]) for a in data)

    def train(seed):
        state = init_train_state(jax.random.key(seed), net.params, net.stats, optimizer)
        return jax.lax.scan(step, state, batches)

    together, metrics = jax.jit(jax.vmap(train))(jnp.arange(3))
    assert metrics["loss"].shape == (3, 4)
    assert np.ptp(metrics["loss"][:, 0]) > 0, "each seed has its own masks"
    for seed in range(3):
        state = start(net, optimizer, seed)
        for i in range(4):
            state, last = jax.jit(step)(state, (batches[0][i], batches[1][i]))
        alone = jax.tree.map(lambda a, seed=seed: a[seed], together._replace(key=None))
        chex.assert_trees_all_close(alone, state._replace(key=None), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(metrics["loss"][seed, 3], last["loss"], rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_cross_entropy_of_logits(dtype):
    logits = jnp.asarray([[0.3, -200.0, 5.0], [1e4, 0.0, 1e4], [-np.inf, 0.0, 1.0], [2.0, 2.0, 2.0]], dtype)
    labels = jnp.array([1, 2, 2, 0], jnp.uint8)
    losses = cross_entropy(logits, labels)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    gradient = jax.grad(lambda logits: cross_entropy(logits, labels).sum())(logits).astype(jnp.float32)
    wanted = jax.nn.softmax(logits.astype(jnp.float32)) - np.eye(3)[labels]
    np.testing.assert_allclose(gradient, wanted, atol=2 * jnp.finfo(dtype).eps)
    assert np.isnan(cross_entropy(logits, jnp.array([1, 3, -1, 0]))).tolist() == [False, True, True, False]


def test_own_loss_and_metrics_of_a_regression(data):
    def apply(key, params, stats, x, *, train):
        return (x["a"] @ params)[:, 0], stats

    batch = ({"a": data[0]}, data[0][:, 0] * 2)
    state = init_train_state(jax.random.key(0), jnp.zeros((5, 1)), (), optax.sgd(0.01))
    _, metrics = make_train_step(apply, optax.sgd(0.01), loss=optax.l2_loss)(state, batch)
    assert metrics.keys() == {"loss"}
    np.testing.assert_allclose(metrics["loss"], (batch[1] ** 2).mean() / 2, rtol=1e-5)
    assert make_eval_step(apply, loss=optax.l2_loss)(state, batch).keys() == {"loss"}


def test_low_precision_losses_are_averaged_in_float32():
    def apply(key, params, stats, x, *, train):
        return x.astype(jnp.bfloat16) @ params.astype(jnp.bfloat16), stats

    x = np.full((1000, 1), 1.0, np.float32)
    state = init_train_state(jax.random.key(0), jnp.zeros((1, 2)), (), optax.sgd(0.1))
    metrics = make_eval_step(apply)(state, (x, np.zeros(1000, np.int32)))
    assert metrics["loss"].dtype == jnp.float32
    np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=4e-3)


def test_a_bad_batch_shows_and_a_skipped_gradient_leaves_nothing_behind(net, data):
    optimizer = optax.apply_if_finite(optax.adam(0.01), max_consecutive_errors=5)
    step = jax.jit(make_train_step(net.apply, optimizer))
    state, _ = step(start(net, optimizer), data)
    after, metrics = step(state, (np.full_like(data[0], np.nan), data[1]))
    assert np.isnan(metrics["loss"])
    chex.assert_trees_all_equal(after.params, state.params)
    chex.assert_trees_all_equal(after.stats, state.stats)
    assert after.opt_state.total_notfinite == 1
    again, metrics = step(after, data)
    assert np.isfinite(metrics["loss"])
    assert not np.array_equal(again.params["w"], state.params["w"])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s._replace(mean=s.mean[:3]), r"\.mean is float32\[3\] instead of float32\[7\]"),
        (lambda s: s._replace(var=s.var.astype(jnp.bfloat16)), r"\.var is bfloat16\[7\] instead of float32\[7\]"),
        (lambda s: s.mean, r"\.mean \(float32\[7\]\) is missing"),
        (lambda s: (s, s.mean), "unexpected"),
        (lambda s: {}, "missing"),
    ],
)
def test_statistics_that_change_their_kind(change, message, net, data):
    def apply(key, params, stats, x, *, train):
        outputs, stats = net.apply(key, params, stats, x, train=train)
        return outputs, change(stats)

    with pytest.raises(ValueError, match=message) as error:
        jax.jit(make_train_step(apply, optax.sgd(0.1)))(start(net, optax.sgd(0.1)), data)
    assert "the stats that apply returns must be like those it was given" in str(error.value)


def test_statistics_that_change_their_container(data):
    state = init_train_state(jax.random.key(0), jnp.ones((5, 3)), (jnp.ones(2),), optax.sgd(0.1))
    step = make_train_step(lambda key, params, stats, x, *, train: (x @ params, list(stats)), optax.sgd(0.1))
    with pytest.raises(ValueError, match="PyTreeDef"):
        step(state, data)


@pytest.mark.parametrize(
    "batch, error, message",
    [
        (np.ones((4, 5)), TypeError, r"batch must be \(x, labels\) or \(x, labels, weights\), got ndarray; unpack="),
        (({"x": np.ones((4, 5))},), TypeError, "got tuple of length 1; unpack= takes them from another one"),
        ((np.ones((4, 5)), np.zeros(4, int), 1.0), ValueError, "weights must begin with the axis of the examples, got a scalar"),
        (
            (np.ones((4, 5)), np.zeros(4, int), np.ones((4, 1))),
            ValueError,
            r"weights must be one for each example, shape \[4\], got shape \[4, 1\]",
        ),
        (
            (np.ones((4, 5)), np.zeros(3, int)),
            ValueError,
            "the arrays of batch must have the same number of examples, got x 4, labels 3",
        ),
        (({"a": np.ones((4, 5)), "b": np.ones(2)}, np.zeros(4, int)), ValueError, r"x\['a'\] 4, x\['b'\] 2, labels 4"),
        ((np.ones((0, 5)), np.zeros(0, int)), ValueError, "batch must hold at least one example, got 0"),
        ((1.0, np.zeros(1, int)), ValueError, "x must begin with the axis of the examples, got a scalar"),
        (((), ()), ValueError, "batch must hold arrays"),
        ((np.ones((4, 5)), np.zeros(4)), TypeError, r"labels must be integers for the default loss, got float\d\d\[4\]"),
        ((np.ones((4, 5)), np.zeros((4, 1), int)), ValueError, r"outputs must have shape \[B, classes\] and labels \[B\]"),
        ((np.ones((4, 2, 5)), np.zeros((4, 2), int)), ValueError, r"outputs must have shape \[B, classes\] and labels \[B\]"),
    ],
)
def test_bad_batches(batch, error, message):
    state = init_train_state(jax.random.key(0), jnp.ones((5, 3)), (), optax.sgd(0.1))
    for step in (make_train_step(linear, optax.sgd(0.1)), make_eval_step(linear)):
        with pytest.raises(error, match=message):
            jax.jit(step)(state, batch) if isinstance(batch, tuple) and batch else step(state, batch)


def test_a_loss_that_is_not_per_example(data):
    state = init_train_state(jax.random.key(0), jnp.ones((5, 3)), (), optax.sgd(0.1))
    step = make_train_step(linear, optax.sgd(0.1), loss=lambda outputs, labels: outputs.mean())
    with pytest.raises(ValueError, match=r"loss must return one value for each example, shape \[90\], got shape \[\]"):
        step(state, data)


def second(outputs, labels):
    return jax.lax.top_k(outputs, 2)[1][:, 1] == labels


def test_a_batch_that_is_a_dict_with_weights_and_metrics_of_ones_own(net, data):
    def apply(key, params, stats, x, *, train):
        image, scale = x
        return net.apply(key, params, stats, image * scale, train=train, rate=0.0)

    batch = {"image": data[0] / 2, "scale": np.full((90, 1), 2, np.float32), "label": data[1], "weight": np.arange(90) % 4}
    options = {"metrics": {"second": second}, "unpack": lambda b: ((b["image"], b["scale"]), b["label"], b["weight"])}
    state, evaluate = start(net, optax.sgd(1.0)), jax.jit(make_eval_step(apply, **options))
    new, metrics = jax.jit(make_train_step(apply, optax.sgd(1.0), **options))(state, batch)
    assert metrics.keys() == {"loss", "accuracy", "second", "weight"}

    def weighted_loss(params):
        outputs, _ = net.apply(state.key, params, state.stats, data[0], train=True, rate=0.0)
        return (batch["weight"] * cross_entropy(outputs, data[1])).sum() / batch["weight"].sum(), outputs

    (loss, outputs), grads = jax.value_and_grad(weighted_loss, has_aux=True)(state.params)
    wanted = {"loss": loss, "weight": batch["weight"].sum()}
    for name, place in (("accuracy", -1), ("second", -2)):
        wanted[name] = np.average(np.argsort(outputs, 1)[:, place] == data[1], weights=batch["weight"])
    chex.assert_trees_all_close(metrics, jax.tree.map(jnp.float32, wanted), rtol=1e-5)
    chex.assert_trees_all_close(new.params, jax.tree.map(jnp.subtract, state.params, grads), rtol=1e-5, atol=1e-6)

    means = evaluate_batches(evaluate, state, [jax.tree.map(lambda a, i=i: a[i : i + 26], batch) for i in range(0, 90, 26)])
    whole = evaluate(state, batch)
    assert means.keys() == {"loss", "accuracy", "second"}
    for name, mean in means.items():
        np.testing.assert_allclose(mean, whole[name], rtol=1e-5)


def test_rows_of_weight_0_are_nothing(net, data):
    """The rows that fill up a batch: also where their loss is NaN, and where there is nothing else."""
    padded = (np.concatenate([data[0], 9 * data[0][:6]]), np.concatenate([data[1], np.full(6, 77, np.int32)]))
    weights = np.concatenate([np.ones(90), np.zeros(6)]).astype(np.float32)
    state = init_train_state(jax.random.key(0), np.ones((5, 3), np.float32), (), optax.sgd(1.0))
    step = jax.jit(make_train_step(linear, optax.sgd(1.0)))
    expected, metrics = step(state, data)
    new, of_padded = step(state, (*padded, weights))
    np.testing.assert_allclose(new.params, expected.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_padded["loss"], metrics["loss"], rtol=1e-6)
    new, of_none = step(state, (*padded, 0 * weights))
    np.testing.assert_array_equal(new.params, state.params)
    assert of_none == {"loss": 0, "accuracy": 0, "weight": 0}
    of_nothing = evaluate_batches(make_eval_step(linear), state, [(*padded, 0 * weights)])
    assert of_nothing.keys() == {"loss", "accuracy"}
    assert np.isnan(list(of_nothing.values())).all()


def test_metrics_with_names_or_shapes_that_do_not_fit(data):
    state = init_train_state(jax.random.key(0), jnp.ones((5, 3)), (), optax.sgd(0.1))
    for make in (functools.partial(make_train_step, linear, optax.sgd(0.1)), functools.partial(make_eval_step, linear)):
        with pytest.raises(
            ValueError, match=r"other names than the step's own \(loss, accuracy, weight, skipped\), got \['loss'"
        ):
            make(metrics={"top2": second, "loss": second})
        with pytest.raises(ValueError, match=r"mean must return one value for each example, shape \[90\], got shape \[\]"):
            make(metrics={"mean": lambda outputs, labels: outputs.mean()})(state, data)
        with pytest.raises(TypeError, match=r"unpack must return \(x, labels\) or \(x, labels, weights\), got dict$"):
            make(unpack=lambda batch: {"x": batch[0]})(state, data)
    with pytest.raises(TypeError, match="skip_not_finite must be True or False"):
        make_train_step(linear, optax.sgd(0.1), skip_not_finite="no")


@pytest.mark.parametrize("microbatches", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_300_steps_with_bad_batches_are_those_without(microbatches, net, data):
    """Also where one microbatch of three is bad, and with an optimizer that counts and draws."""
    optimizer = optax.chain(optax.add_noise(0.01, 0.5, 3), optax.adam(0.01))
    options = {"microbatches": microbatches, "microbatch_stats": "pooled"}
    step = jax.jit(make_train_step(net.apply, optimizer, skip_not_finite=True, **options), donate_argnums=0)
    rng = np.random.default_rng(0)
    rows = [rng.permutation(90)[:30] for _ in range(300)]
    bad = rng.random(300) < 0.1

    def train(with_bad):
        state, skipped = jax.tree.map(jnp.copy, start(net, optimizer)), 0.0
        for chosen, is_bad in zip(rows, bad, strict=True):
            if is_bad:
                x = data[0][chosen]
                x[rng.integers(30), rng.integers(5)] = rng.choice([np.nan, np.inf])
                if not with_bad:
                    continue
                state, metrics = step(state, (x, data[1][chosen]))
                assert not np.isfinite(metrics["loss"])
            else:
                state, metrics = step(state, (data[0][chosen], data[1][chosen]))
            skipped += float(metrics["skipped"])
        return state, skipped

    (state, skipped), (expected, none) = train(with_bad=True), train(with_bad=False)
    assert (skipped, none) == (bad.sum(), 0)
    assert skipped > 15
    assert state.step == 300 - bad.sum()
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        is_key = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(*((jax.random.key_data(a), jax.random.key_data(b)) if is_key else (a, b)))


def test_evaluation_uses_running_statistics_and_changes_nothing(net, data):
    stats = jaxnorm.RunningStats(jnp.linspace(-1, 1, 7), jnp.linspace(0.5, 3, 7))
    state = init_train_state(jax.random.key(0), net.params, stats, optax.sgd(0.1))
    before = jax.tree.map(np.asarray, state._replace(key=None))
    evaluate = jax.jit(make_eval_step(net.apply))
    metrics = evaluate(state, data)
    chex.assert_trees_all_equal(state._replace(key=None), before)
    chex.assert_trees_all_equal(evaluate(state._replace(key=jax.random.key(9)), data), metrics)

    hidden = (data[0].astype(np.float64) @ np.asarray(net.params["w"]) - stats.mean) / np.sqrt(np.asarray(stats.var) + 1e-5)
    logits = np.maximum(hidden, 0) @ np.asarray(net.params["out"])
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(90), data[1]]
    np.testing.assert_allclose(metrics["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(1) == data[1]).mean(), rtol=1e-6)


def test_ragged_batches_weigh_what_they_hold(net, data):
    state, evaluate = start(net, optax.sgd(0.1)), jax.jit(make_eval_step(net.apply))
    whole = evaluate(state, data)
    batches = ordered_batches(*data, batch_size=26)
    assert [len(labels) for _, labels in batches] == [26, 26, 26, 12]
    mean = evaluate_batches(evaluate, state, batches)
    np.testing.assert_allclose(mean["loss"], whole["loss"], rtol=1e-6)
    np.testing.assert_allclose(mean["accuracy"], whole["accuracy"], rtol=1e-6)
    unweighted = np.mean([evaluate(state, batch)["loss"] for batch in batches])
    assert abs(unweighted - whole["loss"]) > 1e-4, "the test must see a wrong weighting"
    with pytest.raises(ValueError, match="batches must hold at least one batch"):
        evaluate_batches(evaluate, state, iter(()))


def test_one_trace_for_100_steps_with_scheduled_rate_and_momentum(net, data):
    schedules = {"rate": optax.linear_schedule(0.0, 0.6, 100), "momentum": lambda step: step / (step + 1)}
    optimizer = optax.adam(optax.exponential_decay(0.01, 10, 0.9))
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(make_train_step(net.apply, optimizer, schedules=schedules), n=1), donate_argnums=0)
    state = start(net, optimizer)
    state = jax.tree.map(jnp.copy, state)
    for _ in range(100):
        state, metrics = step(state, data)
    assert state.step == 100
    assert np.isfinite(metrics["loss"])


def test_what_is_scheduled_reaches_the_model(data):
    seen = jnp.zeros(2)

    def apply(key, params, stats, x, *, train, rate=-1.0, momentum=-1.0):
        return x @ params, jnp.stack([rate, momentum]).astype(jnp.float32) if train else stats

    schedules = {"rate": optax.linear_schedule(0.0, 0.5, 4), "momentum": lambda step: step / (step + 1)}
    state = init_train_state(jax.random.key(0), jnp.ones((5, 3)), seen, optax.sgd(0.1))
    step = jax.jit(make_train_step(apply, optax.sgd(0.1), schedules=schedules))
    for number in range(6):
        state, _ = step(state, data)
        np.testing.assert_allclose(state.stats, [min(number / 8, 0.5), number / (number + 1)], rtol=1e-6)


def test_a_cumulative_momentum_averages_all_batches(net, data):
    step = make_train_step(net.apply, optax.sgd(0.0), schedules={"momentum": lambda step: step / (step + 1)})
    state = start(net, optax.sgd(0.0))
    for i in range(3):
        state, _ = step(state, (data[0][30 * i : 30 * i + 30], data[1][30 * i : 30 * i + 30]))
    hidden = data[0].astype(np.float64) @ np.asarray(net.params["w"], np.float64)
    np.testing.assert_allclose(state.stats.mean, hidden.mean(0), rtol=1e-4, atol=1e-5)


def test_donated_buffers_give_the_same_and_are_gone(net, data):
    step = make_train_step(net.apply, optax.adam(0.01))
    kept, donated = jax.jit(step), jax.jit(step, donate_argnums=0)
    a = start(net, optax.adam(0.01))
    b = jax.tree.map(jnp.copy, a)
    for _ in range(5):
        old = b
        a, metrics_a = kept(a, data)
        b, metrics_b = donated(b, data)
        assert old.params["w"].is_deleted()
    chex.assert_trees_all_equal(a._replace(key=None), b._replace(key=None))
    chex.assert_trees_all_equal(metrics_a, metrics_b)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_batch_sharded_over_eight_devices(axis_type, net, data):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    batch = (data[0][:80], data[1][:80])
    step = jax.jit(make_train_step(net.apply, optax.sgd(0.1)))
    one, many = start(net, optax.sgd(0.1)), jax.device_put(start(net, optax.sgd(0.1)), whole)
    for _ in range(3):
        one, one_metrics = step(one, batch)
        many, many_metrics = step(many, jax.device_put(batch, split))
    assert many.params["w"].sharding.is_fully_replicated
    assert len(many.params["w"].sharding.device_set) == 8
    chex.assert_trees_all_close(
        (one.params, one.stats, one_metrics), (many.params, many.stats, many_metrics), rtol=1e-6, atol=1e-6
    )
