"""What `co_adaptation` measures, on networks small enough to know the answer."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.experiments._experiment import Options, measure_together, together
from jaxnorm.experiments._mlp import MLP, batch_norms
from jaxnorm.experiments.co_adaptation import spliced


def test_a_splice_takes_units_whole_and_the_classifier_of_the_first():
    model = MLP(batch_norms(), depth=3, width=16, features=4, classes=2)
    one, other = (model.init(jax.random.key(seed)) for seed in (0, 1))
    params, _ = spliced(jax.random.key(2), one, other)
    np.testing.assert_array_equal(params.classifier.kernel, one[0].classifier.kernel)
    for got, a, b in zip(params[:2], one[0][:2], other[0][:2], strict=True):
        from_one, from_other = (jnp.all(got.dense.kernel == each.dense.kernel, -2) for each in (a, b))
        assert jnp.all(from_one ^ from_other)
        assert 0 < from_one.sum() < from_one.size


def test_arms_that_are_measured_together_are_measured_once():
    calls = []

    def measure(keys, options, progress):
        calls.append(options)
        return {"a": {"x": 1}, "b": {"x": 2}}

    for number in (1, 2):
        options = Options(seeds=1)
        arms = together(("a", "b"), measure)(options)
        keys = jax.random.split(jax.random.key(0), 1)
        assert [measure_together(arm, keys, options, lambda share: None)["x"] for arm in arms.values()] == [1, 2]
        assert len(calls) == number
