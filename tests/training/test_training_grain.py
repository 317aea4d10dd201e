import builtins
import json
import threading

import chex
import jax
import numpy as np
import optax
import pytest

from jaxnorm.training import GrainBatches, fit, init_train_state, latest_step, make_train_step

grain = pytest.importorskip("grain")
SOURCE = [(np.float32([i, -i]), np.int32(i)) for i in range(23)]


def noisy(example, rng):
    x, label = example
    return x + rng.normal(size=2).astype(np.float32), label


def doubled(example):
    return 2 * example[0], example[1]


def batches_of(count=12, **changes):
    """The first batches, and the iterator after them."""
    arguments = {"source": SOURCE, "batch_size": 4, "seed": 1, "threads": 0} | changes
    batches = GrainBatches(**arguments)
    return [next(batches) for _ in range(count)], batches


def equal(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), found, expected)


@pytest.fixture
def in_process(monkeypatch):
    """Makes jax say that this is one of several processes."""

    def set_numbers(index, count):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(jax, "process_count", lambda: count)

    return set_numbers


def test_each_epoch_has_all_examples_in_a_new_order():
    found, _ = batches_of(15)
    assert all((x.shape, x.dtype, labels.dtype) == ((4, 2), np.float32, np.int32) for x, labels in found)
    epochs = np.concatenate([labels for _, labels in found]).reshape(3, 20)
    for order in epochs:
        assert len(set(order)) == 20
    assert (epochs[0] != epochs[1]).mean() > 0.5
    assert len({frozenset(range(23)) - frozenset(order) for order in epochs}) > 1, "other ones are left out"
    for x, labels in found:
        np.testing.assert_array_equal(x, np.stack([labels, -labels], axis=1))


def test_the_shuffle_is_global():
    """Over many epochs each place in the first batch comes from all over the data, and any two examples may meet."""
    found = np.array(batches_of(8 * 300, source=list(range(16)), batch_size=2)[0][::8])
    assert all(len(set(place)) == 16 for place in found.T)
    assert len(set(map(tuple, found))) > 150, "of 240 pairs in all"


def test_batches_depend_on_the_seed_and_on_nothing_else():
    transforms = [noisy, doubled]
    expected, _ = batches_of(transforms=transforms)
    equal(batches_of(transforms=transforms)[0], expected)
    equal(batches_of(transforms=transforms, threads=3)[0], expected)
    equal([labels for _, labels in batches_of()[0]], [labels for _, labels in expected])
    other, _ = batches_of(seed=2)
    assert np.mean([a[1] != b[1] for a, b in zip(other, expected, strict=True)]) > 0.5
    equal(batches_of(seed=np.int64(1), batch_size=np.int64(4), transforms=transforms)[0], expected)


def test_transforms_apply_in_turn_with_noise_of_example_and_epoch():
    plain, _ = batches_of()
    noise = {}
    for transforms, factor in (([noisy, doubled], 2), ([doubled, noisy], 1)):
        found, _ = batches_of(transforms=transforms)
        noise[factor] = np.array([x - 2 * bare for (x, _), (bare, _) in zip(found, plain, strict=True)]) / factor
        assert 0.5 < noise[factor].std() < 1.5
        assert len(np.unique(noise[factor])) == noise[factor].size, "each example has its own in each epoch"
    twice, _ = batches_of(transforms=[noisy, noisy])
    both = np.array([x - bare for (x, _), (bare, _) in zip(twice, plain, strict=True)])
    assert (np.abs(both - 2 * noise[2]) > 1e-3).mean() > 0.9, "the second has noise of its own"


@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_processes_make_up_the_batches_of_one(count, in_process):
    expected, whole = batches_of(transforms=[noisy])
    parts = []
    for index in range(count):
        in_process(index, count)
        part, batches = batches_of(transforms=[noisy])
        parts.append(part)
        assert batches.get_state() == whole.get_state(), "so that any number of processes goes on"
    equal([jax.tree.map(lambda *arrays: np.concatenate(arrays), *part) for part in zip(*parts, strict=True)], expected)


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("given", [0, 1, 5, 7])
def test_a_position_is_found_again(given, threads):
    expected, _ = batches_of(transforms=[noisy])
    _, batches = batches_of(given, transforms=[noisy], threads=threads)
    state = json.loads(json.dumps(batches.get_state()))
    ahead = [next(batches) for _ in range(12 - given)]
    equal(ahead, expected[given:])
    assert batches.get_state() != state
    batches.set_state(state)
    equal([next(batches) for _ in range(12 - given)], expected[given:])
    _, fresh = batches_of(0, transforms=[noisy], threads=threads)
    fresh.set_state(state)
    assert fresh.get_state() == state
    equal([next(fresh) for _ in range(12 - given)], expected[given:])


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_from_any_position():
    def augment(example, rng):  # local, so that it goes to the workers by value
        return example[0] + rng.normal(size=2).astype(np.float32), example[1]

    expected, _ = batches_of(transforms=[augment])
    _, batches = batches_of(5, transforms=[augment])
    state = batches.get_state()
    _, workers = batches_of(0, transforms=[augment], workers=2, threads=1)
    workers.set_state(state)
    equal([next(workers) for _ in range(7)], expected[5:])
    assert workers.get_state() == state | {"batch": 12}
    workers.close()


def test_an_error_of_a_source_names_itself_and_skips_nothing():
    class Source(list):
        broken = False

        def __repr__(self):
            raise AssertionError("nobody prints all examples")

        def __getitem__(self, index):
            if self.broken:
                raise OSError(f"example {index} is on strike")
            return super().__getitem__(index)

    source = Source(SOURCE)
    for threads in (0, 2):
        expected, _ = batches_of()
        found, batches = batches_of(3, source=source, threads=threads)
        state = batches.get_state()
        source.broken = True
        batches.set_state(state)
        for _ in range(2):
            with pytest.raises(OSError, match=r"example \d+ is on strike"):
                next(batches)
        assert batches.get_state() == state
        source.broken = False
        equal(found + [next(batches) for _ in range(9)], expected)


def test_close_ends_the_threads():
    before = set(threading.enumerate())
    _, batches = batches_of(3, threads=3)
    started = set(threading.enumerate()) - before
    assert 1 <= len(started) <= 3
    batches.close()
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()
    expected, _ = batches_of()
    equal(next(batches), expected[3])
    batches.close()


class StopHere(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture(scope="module")
def run(net):
    """Calls fit for 3 epochs of 5 batches of augmented examples."""
    rng = np.random.default_rng(0)
    source = [{"x": x, "label": np.int32(x.sum() > 0)} for x in rng.normal(size=(83, 5)).astype(np.float32)]
    optimizer = optax.adam(0.02)
    step = make_train_step(net.apply, optimizer)

    def augment(example, rng):
        return example["x"] + 0.1 * rng.normal(size=5).astype(np.float32), example["label"]

    def start(stop=None, threads=2, **options):
        batches = GrainBatches(source, batch_size=16, seed=3, transforms=[augment], threads=threads)
        advance, given = type(batches).__next__, iter(range(100))

        class Stopping(type(batches)):
            def __next__(self):
                if next(given) == stop:
                    raise StopHere
                return advance(self)

        batches.__class__ = Stopping
        state = init_train_state(jax.random.key(0), net.params, net.stats, optimizer)
        state, history = fit(state, step, batches, epochs=3, steps_per_epoch=5, progress=False, **options)
        return state._replace(key=jax.random.key_data(state.key)), history

    return start


@pytest.fixture(scope="module")
def whole_run(run):
    return run()


@pytest.mark.parametrize("every, stop", [(None, 7), (2, 9)])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(every, stop, run, whole_run, tmp_path):
    options = {"checkpoints": tmp_path, "checkpoint_every": every}
    with pytest.raises(StopHere):
        run(stop, **options)
    assert latest_step(tmp_path) == {None: 5, 2: 8}[every]
    state, history = run(threads=0, resume=True, **options)
    expected, straight = whole_run
    chex.assert_trees_all_equal(state, expected)
    assert history == straight
    assert len(history) == 3


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"batch_size": 24}, ValueError, "batch_size must be at most the number of examples, 23, got 24"),
        ({"source": []}, ValueError, "batch_size must be at most the number of examples, 0, got 4"),
        ({"source": iter(SOURCE)}, TypeError, "source must have a length and examples by index, got <list_iterator"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an int"),
        ({"threads": -1}, ValueError, "threads must be at least 0, got -1"),
        ({"workers": -1}, ValueError, "workers must be at least 0, got -1"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 4294967295\], .* got -1"),
        ({"seed": 2**32}, ValueError, "seed must be in"),
        ({"seed": 1.0}, TypeError, "seed must be an int, got 1.0"),
        (
            {"transforms": [lambda: 0]},
            TypeError,
            r"transforms must be functions of \(example\) or \(example, rng\), got <function",
        ),
        ({"transforms": [lambda a, b, c: 0]}, TypeError, "transforms must be functions of"),
        ({"transforms": noisy}, TypeError, "transforms must be a sequence of functions, got <function noisy"),
        ({"transforms": [lambda example: None]}, ValueError, "transforms must return an example, got None from <function"),
        ({"transforms": [3]}, TypeError, r"transforms must be functions of .* got 3"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        batches_of(**change)


def test_batches_that_processes_cannot_share(in_process):
    in_process(0, 3)
    with pytest.raises(ValueError, match="batch_size must be divisible by the number of processes, 3, got 4"):
        batches_of()


@pytest.mark.parametrize(
    "state",
    [
        {"examples": 23, "batch_size": 4, "seed": 2, "batch": 0},
        {"examples": 22, "batch_size": 4, "seed": 1, "batch": 0},
        {"examples": 23, "batch_size": 8, "seed": 1, "batch": 0},
        {"next_index": 3},
        [1],
        None,
    ],
)
def test_states_of_other_batches_are_refused(state):
    expected, _ = batches_of()
    _, batches = batches_of(2)
    with pytest.raises(ValueError, match=r"state must be of these batches, {'examples': 23, 'batch_size': 4, 'seed': 1}, got"):
        batches.set_state(state)
    equal(next(batches), expected[2])


def test_states_without_a_number():
    _, batches = batches_of(2)
    of = {"examples": 23, "batch_size": 4, "seed": 1}
    with pytest.raises(TypeError, match="batch must be an int of at least 0, got None"):
        batches.set_state(of)
    with pytest.raises(ValueError, match="batch must be at least 0, got -1"):
        batches.set_state(of | {"batch": -1})


def test_grain_is_optional(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "grain":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"GrainBatches needs the package grain: pip install 'jaxnorm\[data\]'"):
        batches_of(0)


def test_a_dataset_of_grain_evaluates():
    found = list(grain.MapDataset.source(SOURCE).batch(10).to_iter_dataset())
    assert [len(labels) for _, labels in found] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in found]), np.arange(23))
