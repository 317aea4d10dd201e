import numpy as np

from jaxnorm.training.meter import _MAX_PENDING, Meter


def test_metrics_are_fetched_when_they_are_ready():
    class Slow:
        fetched = 0

        def __init__(self, value):
            self.value, self.ready = value, False

        def is_ready(self):
            return self.ready

        def __float__(self):
            Slow.fetched += 1
            return self.value

    meter, values = Meter("step"), [Slow(float(i)) for i in range(_MAX_PENDING + 3)]
    for i, value in enumerate(values[:_MAX_PENDING]):
        meter.add({"loss": value}, 1 + i % 2, i)
    assert Slow.fetched == 0
    assert meter.latest == {}
    values[1].ready = True
    meter.add({"loss": values[_MAX_PENDING]}, 1, _MAX_PENDING)
    assert Slow.fetched == 2, "the oldest is waited for, the next is ready"
    assert meter.latest == {"loss": 1.0}
    sizes = [1 + i % 2 for i in range(_MAX_PENDING)] + [1]
    expected = np.average(np.arange(_MAX_PENDING + 1), weights=sizes)
    np.testing.assert_allclose(meter.means()["loss"], expected, rtol=1e-12)
    assert meter.count == sum(sizes)
