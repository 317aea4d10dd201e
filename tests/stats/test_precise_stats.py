"""Precise statistics of functions, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks_of_norms import WIDTH, data, network, oracle, update_of
from tiers import then_slow

import jaxnorm
from jaxnorm import RunningStats
from jaxnorm.statistics import adapt_stats, precise_stats


def assert_close(found: list[RunningStats], wanted: list[tuple[np.ndarray, np.ndarray]], rtol: float = 1e-6) -> None:
    for own, (mean, var) in zip(found, wanted, strict=True):
        assert np.abs(own.mean - mean).max() <= rtol * np.sqrt(var.max()) + rtol * np.abs(mean).max()
        np.testing.assert_allclose(own.var, var, rtol=4 * rtol)


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (batch for batch in np.asarray(x))], ids=["array", "generator"])
def test_one_layer_gets_the_statistics_of_the_whole_set(form) -> None:
    params, stats = network(1)
    x = data()
    found = precise_stats(update_of(params), stats, form(x), progress=False)
    assert_close(found, oracle(params, x))
    assert jax.tree.structure(found) == jax.tree.structure(stats)


def test_batches_of_any_sizes_weigh_what_they_hold() -> None:
    params, stats = network(1)
    x = data().reshape(-1, WIDTH)
    found = precise_stats(update_of(params), stats, [x[:3], x[3:60], x[60:61], x[61:]], progress=False)
    assert_close(found, oracle(params, x))


def test_batch_mode_of_one_batch_is_exact_in_all_layers() -> None:
    params, stats = network(3)
    x = data()
    found = precise_stats(update_of(params), stats, x.reshape(1, -1, WIDTH))
    assert_close(found, oracle(params, x), 4e-6)


@pytest.mark.parametrize("form", [lambda x: x, pytest.param(list, marks=pytest.mark.slow)], ids=["array", "list"])
def test_layer_by_layer_is_exact_in_eight(form) -> None:
    params, stats = network(8)
    x = data()
    found = precise_stats(update_of(params, by_stats=True), stats, form(x), layer_by_layer=True, progress=False)
    assert_close(found, oracle(params, x))
    in_batches = precise_stats(update_of(params), stats, x)
    assert np.abs(in_batches[7].var / oracle(params, x)[7][1] - 1).max() > 0.05  # which batch mode is not


def test_layer_by_layer_takes_moments_and_stops_when_nothing_changes() -> None:
    params, stats = network(2)
    seen = []

    def update(stats: list[RunningStats], x: jax.Array) -> list[jaxnorm.Moments]:
        jax.debug.callback(lambda _: seen.append(1), x[0, 0])
        new = []
        for (kernel, norm), own in zip(params, stats, strict=True):
            x = x @ kernel
            new.append(jaxnorm.reference_moments(x))
            x = jax.nn.relu(jaxnorm.batch_norm(norm, own, x, train=False)[0])
        return new

    x = data()
    found = precise_stats(update, stats, list(x), layer_by_layer=True, progress=False)
    assert_close(found, oracle(params, x))
    again = precise_stats(update, found, list(x), layer_by_layer=True, progress=False)
    assert_close(again, oracle(params, x))
    jax.effects_barrier()
    assert len(seen) == len(x) * (2 + 1)


def test_the_stale_pass_is_an_error_and_so_is_an_average() -> None:
    """Methods 2.1: with the old statistics in use while the new ones are collected, deep layers are estimated wrongly."""
    params, stats = network(2)
    with pytest.raises(ValueError, match=r"none of 1: .*layer_by_layer.*momentum must be 0"):
        precise_stats(update_of(params, by_stats=True), stats, data())
    for momentum in (0.001,):
        with pytest.raises(ValueError, match=r"none of 0, 1"):
            precise_stats(update_of(params, momentum=momentum), stats, data())


def test_masks_count_by_moments_and_by_a_function() -> None:
    params, state = jaxnorm.init_batch_norm(WIDTH)
    x = data(4, 8)
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, (4, 8)).at[1].set(False)
    batches = {"x": jnp.where(mask[..., None], x, jnp.nan), "mask": mask}

    def with_state(state: RunningStats, batch: dict[str, jax.Array]) -> RunningStats:
        where = batch["mask"][:, None]
        return jaxnorm.batch_norm(params, state, batch["x"], train=True, momentum=0.0, where=where)[1]

    def with_moments(_: RunningStats, batch: dict[str, jax.Array]) -> jaxnorm.Moments:
        return jaxnorm.reference_moments(batch["x"], where=batch["mask"][:, None])

    counted = np.asarray(x, np.float64)[np.asarray(mask)]
    for update, count in ((with_state, lambda batch: batch["mask"].sum()), (with_moments, None)):
        found = precise_stats(update, state, batches, count=count)
        assert_close([found], [(counted.mean(0), counted.var(0))])


@pytest.mark.parametrize("by_stats", then_slow([True, False]))
def test_statistics_that_are_nan_are_estimated_anew(by_stats: bool) -> None:
    """As of Flax, where one batch with a NaN leaves them so for good."""
    params, stats = network(2)
    x = data().reshape(1, -1, WIDTH)
    spoilt = jax.tree.map(lambda part: jnp.full_like(part, jnp.nan), stats)
    found = precise_stats(update_of(params, by_stats=by_stats), spoilt, x, layer_by_layer=by_stats)
    assert_close(found, oracle(params, x))


def test_a_batch_that_is_not_finite_is_left_out_of_its_channel() -> None:
    params, state = jaxnorm.init_batch_norm(WIDTH)
    x = data().at[2, 3, 1].set(jnp.inf).at[4, 0, 1].set(jnp.nan)

    def update(state: RunningStats, x: jax.Array) -> RunningStats:
        return jaxnorm.batch_norm(params, state, x, train=True, momentum=0.0)[1]

    found = precise_stats(update, state, x)
    whole = np.asarray(x, np.float64)
    for channel in range(WIDTH):
        own = whole[[0, 1, 3] if channel == 1 else slice(None), :, channel]
        np.testing.assert_allclose((found.mean[channel], found.var[channel]), (own.mean(), own.var()), rtol=2e-6)


@pytest.mark.slow
def test_means_far_from_zero() -> None:
    """Pitfalls A: no difference of large squares is taken between batches either."""
    params, state = jaxnorm.init_batch_norm(2)
    x = jax.random.normal(jax.random.key(0), (20, 32, 2)) + jnp.array([1e4, 0.0]).reshape(1, 1, 2)

    def update(state: RunningStats, x: jax.Array) -> RunningStats:
        return jaxnorm.batch_norm(params, state, x, train=True, momentum=0.0)[1]

    found = precise_stats(update, state, x)
    np.testing.assert_allclose(found.var, np.asarray(x, np.float64).reshape(-1, 2).var(0), rtol=1e-4)


@pytest.mark.parametrize(
    "init, layer, spread",
    [
        pytest.param(
            jaxnorm.init_mean_only_batch_norm,
            jaxnorm.mean_only_batch_norm,
            lambda x: {"mean": x.mean(0)},
            marks=pytest.mark.slow,
        ),
        pytest.param(jaxnorm.init_evonorm_b0, jaxnorm.evonorm_b0, None, marks=pytest.mark.slow),
        (
            jaxnorm.init_batch_renorm,
            lambda *a, **k: jaxnorm.batch_renorm(*a, **k, r_max=1.0, d_max=0.0),
            lambda x: {"mean": x.mean(0), "std": np.sqrt(x.var(0) + 1e-5)},
        ),
        pytest.param(
            jaxnorm.init_decorrelated_batch_norm,
            jaxnorm.decorrelated_batch_norm,
            lambda x: {"mean": x.mean(0), "cov": np.stack([np.cov(part.T, bias=True) for part in np.split(x, 2, 1)])},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["mean only", "evonorm b0", "renorm", "decorrelated"],
)
def test_other_statistics(init, layer, spread) -> None:
    x = data()
    options = {"group_size": WIDTH // 2} if layer is jaxnorm.decorrelated_batch_norm else {}
    params, state = init(WIDTH, **options)

    def update(state, x):
        return layer(params, state, x, train=True, momentum=0.0, **options)[1]

    found = precise_stats(update, state, x)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    if spread is None:  # whose means nobody knows
        wanted = {"var": np.mean([np.asarray(own, np.float64).var(0) for own in x], 0)}
    else:
        wanted = spread(np.asarray(x, np.float64).reshape(-1, WIDTH))
    for name, part in wanted.items():
        np.testing.assert_allclose(getattr(found, name), part, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_stacked_layers_under_scan_are_layers_one_upon_the_other() -> None:
    params, stats = network(5)
    stacked_params, stacked_stats = (jax.tree.map(lambda *parts: jnp.stack(parts), *tree) for tree in (params, stats))

    def update(stats: RunningStats, x: jax.Array) -> RunningStats:
        def layer(x, given):
            (kernel, norm), own = given
            x = x @ kernel
            y, _ = jaxnorm.batch_norm(norm, own, x, train=False)
            return jax.nn.relu(y), jaxnorm.batch_norm(norm, own, x, train=True, momentum=0.0)[1]

        return jax.lax.scan(layer, x, (stacked_params, stats))[1]

    x = data()
    found = precise_stats(update, stacked_stats, x, layer_by_layer=True)
    assert_close([jax.tree.map(lambda part, i=i: part[i], found) for i in range(5)], oracle(params, x))


@pytest.mark.slow
def test_under_jit_and_vmap() -> None:
    params, stats = network(2)
    x = jnp.stack([data(seed=1), data(seed=2)])
    for by_stats in (False, True):

        @jax.jit
        @jax.vmap
        def found(x, by_stats=by_stats):
            return precise_stats(update_of(params, by_stats=by_stats), stats, x, layer_by_layer=by_stats)

        together = found(x)
        for number in range(2):
            alone = precise_stats(update_of(params, by_stats=by_stats), stats, x[number], layer_by_layer=by_stats)
            for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(one[number], other, rtol=1e-5, atol=1e-6)


def test_what_is_no_statistic_stays_and_nothing_given_changes() -> None:
    params, stats = network(1)
    tree = {"norm": stats[0], "other": {"u": jnp.arange(3.0), "steps": jnp.int32(7)}}
    before = jax.tree.map(np.asarray, tree)
    found = precise_stats(lambda tree, x: {**tree, "norm": update_of(params)([tree["norm"]], x)[0]}, tree, data())
    np.testing.assert_array_equal(found["other"]["u"], tree["other"]["u"])
    assert found["other"]["steps"] == 7
    jax.tree.map(np.testing.assert_array_equal, tree, before)
    assert not np.allclose(found["norm"].mean, stats[0].mean)


def test_bfloat16_data() -> None:
    params, state = jaxnorm.init_batch_norm(WIDTH)

    def update(state: RunningStats, x: jax.Array) -> RunningStats:
        return jaxnorm.batch_norm(params, state, x, train=True, momentum=0.0)[1]

    x = data().astype(jnp.bfloat16)
    found = precise_stats(update, state, x)
    whole = np.asarray(x, np.float64).reshape(-1, WIDTH)
    assert found.mean.dtype == jnp.float32
    assert_close([found], [(whole.mean(0), whole.var(0))])


@pytest.mark.slow
def test_float64_in_eight_layers() -> None:
    params, stats = network(8)
    with jax.enable_x64(True):
        params, stats, x = jax.tree.map(lambda part: jnp.asarray(part, jnp.float64), (params, stats, data()))
        found = precise_stats(update_of(params, by_stats=True), stats, x, layer_by_layer=True)
        assert found[0].mean.dtype == jnp.float64
        assert_close(found, oracle(params, x), 1e-11)


def test_adabn_takes_back_a_shift_of_contrast_and_brightness() -> None:
    """Methods 3.6: where the target is A x + b per channel at the norm, its output is the source's."""
    params, state = jaxnorm.init_batch_norm(WIDTH)
    source = data()
    target = 3 * source - 7

    def update(state: RunningStats, x: jax.Array) -> RunningStats:
        return jaxnorm.batch_norm(params, state, x, train=True, momentum=0.0)[1]

    found, adapted = precise_stats(update, state, source), adapt_stats(update, state, target)
    y, there = (
        jaxnorm.batch_norm(params, own, x, train=False, epsilon=0.0)[0] for own, x in ((found, source), (adapted, target))
    )
    np.testing.assert_allclose(there, y, atol=1e-5)


def test_a_progress_bar_counts_batches(capsys: pytest.CaptureFixture[str]) -> None:
    params, stats = network(1)
    update, x = update_of(params), list(data())
    precise_stats(update, stats, x, progress=False)
    assert not capsys.readouterr().err
    precise_stats(update, stats, x)
    assert "5/5" in capsys.readouterr().err
    precise_stats(update, stats, x, layer_by_layer=True)
    assert "pass 1 of at most 1" in capsys.readouterr().err
