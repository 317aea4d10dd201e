import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm.training import ordered_batches, shuffled_batches


def labels_of(batches):
    return [np.asarray(labels) for _, labels in batches]


def test_every_example_comes_once_an_epoch_with_its_label(data):
    x, _ = data
    batches = shuffled_batches(jax.random.key(0), x, np.arange(90), batch_size=16, drop_remainder=False)
    found = list(batches(0))
    assert len(batches(0)) == len(found) == 6
    assert [len(labels) for _, labels in found] == [16] * 5 + [10]
    order = np.concatenate([labels for _, labels in found])
    np.testing.assert_array_equal(np.sort(order), np.arange(90))
    np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), x[order])


def test_the_remainder_is_dropped_and_is_another_one_each_epoch(data):
    batches = shuffled_batches(jax.random.key(0), data[0], np.arange(90), batch_size=16, drop_remainder=True)
    assert [len(a) for a in labels_of(batches(0))] == [16] * 5
    assert len(batches(0)) == 5
    missing = [set(range(90)) - set(np.concatenate(labels_of(batches(epoch)))) for epoch in range(2)]
    assert [len(m) for m in missing] == [10, 10]
    assert missing[0] != missing[1]


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_the_order_is_that_of_key_and_epoch(make, data):
    def batches(seed, epoch):
        return np.concatenate(labels_of(shuffled_batches(make(seed), data[0], np.arange(90), **sizes)(epoch)))

    sizes = {"batch_size": 16, "drop_remainder": False}
    np.testing.assert_array_equal(batches(0, 3), batches(0, 3))
    assert (batches(0, 3) != batches(0, 4)).mean() > 0.9
    assert (batches(0, 3) != batches(1, 3)).mean() > 0.9
    assert (batches(0, 0) != np.arange(90)).mean() > 0.9


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_pytrees_and_jax_arrays(convert, data):
    x = {"a": convert(data[0]), "b": convert(np.arange(90))}
    batches = shuffled_batches(jax.random.key(0), x, convert(np.arange(90)), batch_size=40, drop_remainder=True)
    first, labels = next(iter(batches(0)))
    assert first["a"].shape == (40, 5)
    np.testing.assert_array_equal(first["b"], labels)
    assert isinstance(labels, np.ndarray if convert is np.asarray else jax.Array)


def test_ordered_batches_are_views_in_order(data):
    x, labels = data
    batches = ordered_batches(x, labels, batch_size=50)
    assert [len(a) for a in labels_of(batches)] == [50, 40]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), x)
    assert np.shares_memory(batches[0][0], x)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an int"),
        ({"batch_size": 91}, ValueError, "batch_size must be at most the number of examples, 90, to fill a batch, got 91"),
        ({"drop_remainder": 1}, TypeError, "drop_remainder must be True or False"),
        ({"labels": np.arange(89)}, ValueError, "same number of examples, got x 90, labels 89"),
        ({"x": np.ones((0, 2)), "labels": np.arange(0)}, ValueError, "x must hold at least one example, got 0"),
        ({"key": 3}, TypeError, "key must be one key"),
    ],
)
def test_bad_arguments(change, error, message, data):
    arguments = {"key": jax.random.key(0), "x": data[0], "labels": data[1], "batch_size": 8, "drop_remainder": True} | change
    with pytest.raises(error, match=message):
        shuffled_batches(**arguments)
    if not change.keys() & {"drop_remainder", "key"} and change.get("batch_size") != 91:
        with pytest.raises(error, match=message):
            ordered_batches(arguments["x"], arguments["labels"], batch_size=arguments["batch_size"])


def test_the_remainder_must_be_spoken_of(data):
    with pytest.raises(TypeError, match="drop_remainder"):
        shuffled_batches(jax.random.key(0), *data, batch_size=8)
