import numpy as np
import pytest

from jaxnorm.training.meter import _MAX_PENDING, Meter


def test_metrics_are_fetched_when_they_are_ready():
    class Slow:
        fetched = 0

        def __init__(self, value):
            self.value, self.ready = value, False

        def is_ready(self):
            return self.ready

        def __array__(self, dtype=None, copy=None):
            Slow.fetched += 1
            return np.asarray(self.value, dtype)

    meter, values = Meter("step"), [Slow(float(i)) for i in range(_MAX_PENDING + 3)]
    for i, value in enumerate(values[:_MAX_PENDING]):
        meter.add({"loss": value}, (1 + i % 2,), i)
    assert Slow.fetched == 0
    assert meter.latest == {}
    values[1].ready = True
    meter.add({"loss": values[_MAX_PENDING]}, (1,), _MAX_PENDING)
    assert Slow.fetched == 2, "the oldest is waited for, the next is ready"
    assert meter.latest == {"loss": 1.0}
    sizes = [1 + i % 2 for i in range(_MAX_PENDING)] + [1]
    expected = np.average(np.arange(_MAX_PENDING + 1), weights=sizes)
    np.testing.assert_allclose(meter.means()["loss"], expected, rtol=1e-12)
    assert meter.position() == {"sums": {"loss": expected * sum(sizes)}, "weight": sum(sizes), "skipped": None}


def test_several_steps_at_once_equal_one_by_one():
    losses, sizes = np.random.default_rng(0).normal(size=7), [3, 3, 3, 1, 4, 4, 4]
    single, grouped = Meter("step"), Meter("step")
    for i in range(7):
        single.add({"loss": np.float32(losses[i])}, (sizes[i],), i + 1)
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        grouped.add({"loss": losses[part].astype(np.float32)}, sizes[part], part.start + 1)
    assert single.position() == grouped.position()
    assert grouped.latest == {"loss": float(np.float32(losses[-1]))}


def test_weights_weigh_and_a_batch_of_which_nothing_counts_changes_nothing():
    meter = Meter("step")
    with pytest.warns(RuntimeWarning, match="loss of step 2 is nan"):
        meter.add({"loss": np.array([1.0, np.nan, 3.0]), "weight": np.array([1.5, 0.0, 0.5])}, (4, 4, 4), 1)
    assert meter.means() == {"loss": 1.5}
    assert meter.position() == {"sums": {"loss": 3.0}, "weight": 2.0, "skipped": None}
    assert np.isnan(Meter("step", sums={"loss": 0.0}).means()["loss"])


def test_skipped_steps_are_counted_and_warn_once():
    meter = Meter("step")
    with pytest.warns(RuntimeWarning) as caught:
        meter.add({"loss": np.array([2.0, np.inf, np.nan, 4.0]), "skipped": np.array([0.0, 1.0, 1.0, 0.0])}, (1, 1, 1, 3), 5)
    assert meter.means() == {"loss": 3.5, "skipped": 2}
    assert [str(warning.message) for warning in caught] == ["step 6 was skipped: its loss or its gradient is not finite"]
    assert meter.latest == {"loss": 4.0}
    resumed = Meter("step", **meter.position())
    resumed.add({"loss": np.float32(1.0), "skipped": np.float32(0)}, (4,), 9)
    assert resumed.means() == {"loss": 2.25, "skipped": 2}
