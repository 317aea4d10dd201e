import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm import RunningStats
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


def test_data_of_one_pytree_of_three_and_of_one_array(data):
    x, labels = data
    sizes = {"batch_size": 40, "drop_remainder": True}
    whole = {"image": x, "label": labels, "weight": {"w": np.arange(90)}}
    first = next(iter(shuffled_batches(jax.random.key(0), whole, **sizes)(0)))
    assert first.keys() == whole.keys()
    rows = first["weight"]["w"]
    np.testing.assert_array_equal(first["image"], x[rows])
    three = next(iter(shuffled_batches(jax.random.key(0), x, labels, np.arange(90), **sizes)(0)))
    assert isinstance(three, tuple)
    for found, array in zip(three, (x, labels, np.arange(90)), strict=True):
        np.testing.assert_array_equal(found, array[rows])
    np.testing.assert_array_equal(next(iter(shuffled_batches(jax.random.key(0), x, **sizes)(0))), x[rows])
    assert [batch.tolist() for batch in ordered_batches(np.arange(3), batch_size=2)] == [[0, 1], [2]]


def test_a_padded_remainder_is_rows_of_zeros_in_every_array():
    tree = {"a": np.ones((5, 2), np.float16), "b": np.ones(5, bool), "c": jnp.arange(1, 6, dtype=jnp.uint8)}
    shuffled = shuffled_batches(jax.random.key(0), tree, batch_size=4, drop_remainder=False, pad_remainder=True)(1)
    for batches in (shuffled, ordered_batches(tree, batch_size=4, pad_remainder=True)):
        first, last = batches
        assert len(batches) == 2
        for name, array in tree.items():
            assert type(last[name]) is type(array)
            assert (
                (last[name].shape, last[name].dtype) == (first[name].shape, array.dtype) == ((4, *array.shape[1:]), array.dtype)
            )
            np.testing.assert_array_equal(last[name][1:], np.zeros((3, *array.shape[1:])))
        assert sorted([*np.asarray(first["c"]), int(last["c"][0])]) == [1, 2, 3, 4, 5]
        np.testing.assert_array_equal(last["a"][0], [1, 1])
        assert last["b"][0]
    assert [len(batch["b"]) for batch in ordered_batches(tree, batch_size=5, pad_remainder=True)] == [5], "nothing to fill"


def parts(monkeypatch, count, make):
    """The batches that each of so many processes gives."""
    monkeypatch.setattr(jax, "process_count", lambda: count)
    found = []
    for index in range(count):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        found.append(list(make()))
    return found


def joined(found):
    return [jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches) for batches in zip(*found, strict=True)]


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    "total, options",
    [
        (24, {"drop_remainder": False}),
        (28, {"drop_remainder": False}),
        (27, {"drop_remainder": True}),
        (25, {"drop_remainder": False, "pad_remainder": True}),
        (31, {"drop_remainder": False, "pad_remainder": True}),
        (3, {"drop_remainder": False, "pad_remainder": True}),
    ],
)
def test_parts_of_processes_make_up_the_batches_of_one(total, options, count, monkeypatch):
    tree = {"x": np.arange(2.0 * total).reshape(total, 2), "i": np.arange(1, total + 1)}
    batches = shuffled_batches(jax.random.key(0), tree, batch_size=8, **options)
    one = list(batches(3))
    each = parts(monkeypatch, count, lambda: batches(3))
    jax.tree.map(np.testing.assert_array_equal, joined(each), one)
    assert all(len(own["i"]) == len(batch["i"]) // count for found in each for own, batch in zip(found, one, strict=True))
    pad = {"pad_remainder": options.get("pad_remainder", False)}
    if not options["drop_remainder"]:
        monkeypatch.undo()
        one = ordered_batches(tree, batch_size=8, **pad)
        jax.tree.map(
            np.testing.assert_array_equal,
            joined(parts(monkeypatch, count, lambda: ordered_batches(tree, batch_size=8, **pad))),
            one,
        )


def test_batches_that_processes_cannot_share(monkeypatch):
    batches = shuffled_batches(jax.random.key(0), np.arange(22), batch_size=8, drop_remainder=False)
    assert [len(batch) for batch in batches(0)] == [8, 8, 6]
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    message = "drop_remainder or pad_remainder must be True: 4 processes cannot share the last batch, 6 examples, evenly"
    with pytest.raises(ValueError, match=f"^{message}$"):
        batches(0)
    with pytest.raises(ValueError, match=r"^pad_remainder must be True: 4 processes"):
        ordered_batches(np.arange(22), batch_size=8)
    message = "batch_size must be divisible by the number of processes, 4, got 6"
    with pytest.raises(ValueError, match=message):
        ordered_batches(np.arange(22), batch_size=6, pad_remainder=True)
    with pytest.raises(ValueError, match=message):
        shuffled_batches(jax.random.key(0), np.arange(22), batch_size=6, drop_remainder=True)(0)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an int"),
        ({"batch_size": 91}, ValueError, "batch_size must be at most the number of examples, 90, to fill a batch, got 91"),
        ({"drop_remainder": 1}, TypeError, "drop_remainder must be True or False"),
        ({"pad_remainder": 1}, TypeError, "pad_remainder must be True or False"),
        ({"pad_remainder": True}, ValueError, "drop_remainder and pad_remainder must not both be True"),
        (
            {"data": (np.ones((90, 2)), np.arange(89))},
            ValueError,
            r"the arrays of data must have the same number of examples, got data\[0\] 90, data\[1\] 89",
        ),
        ({"data": ({"a": np.ones(3), "b": np.ones(2)},)}, ValueError, r"got data\['a'\] 3, data\['b'\] 2"),
        ({"data": (np.ones(3), [1, 2, 3])}, ValueError, r"data\[1\]\[0\] must begin with the axis of the examples, got 1"),
        ({"data": (np.ones(3), np.ones(()))}, ValueError, r"data\[1\] must begin with the axis of the examples, got a scalar"),
        ({"data": (RunningStats(np.ones(3), np.ones(2)),)}, ValueError, "same number of examples, got mean 3, var 2"),
        ({"data": ()}, ValueError, "data must hold arrays, got none"),
        ({"data": (np.ones((0, 2)), np.arange(0))}, ValueError, "data must hold at least one example, got 0"),
        ({"key": 3}, TypeError, "key must be one key"),
    ],
)
def test_bad_arguments(change, error, message, data):
    arguments = {"key": jax.random.key(0), "data": data, "batch_size": 8, "drop_remainder": True} | change
    key, arrays = arguments.pop("key"), arguments.pop("data")
    with pytest.raises(error, match=message):
        shuffled_batches(key, *arrays, **arguments)
    if change.keys() <= {"data", "batch_size"} and change.get("batch_size") != 91:
        with pytest.raises(error, match=message):
            ordered_batches(*arrays, batch_size=arguments["batch_size"])
    if change.get("pad_remainder") == 1 and error is TypeError:
        with pytest.raises(error, match=message):
            ordered_batches(*arrays, batch_size=8, pad_remainder=1)


def test_the_remainder_must_be_spoken_of(data):
    with pytest.raises(TypeError, match="drop_remainder"):
        shuffled_batches(jax.random.key(0), *data, batch_size=8)
