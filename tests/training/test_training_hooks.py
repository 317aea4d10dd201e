"""What a run calls, what it measures, how it is stopped, and several steps at once."""

import os
import signal
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnorm.training import (
    Status,
    StopTraining,
    best_step,
    fit,
    init_train_state,
    latest_step,
    make_eval_step,
    make_train_step,
    ordered_batches,
    shuffled_batches,
)

OPTIMIZER = optax.inject_hyperparams(optax.adam)(learning_rate=0.02)


@pytest.fixture(scope="module")
def steps(net):
    return make_train_step(net.apply, OPTIMIZER), make_eval_step(net.apply)


@pytest.fixture
def run(net, data, steps):
    """Calls fit on the network and the data, 5 steps an epoch, with changes."""

    def start(**changes):
        arguments = {
            "state": init_train_state(jax.random.key(0), net.params, net.stats, OPTIMIZER),
            "train_step": steps[0],
            "batches": shuffled_batches(jax.random.key(1), *data, batch_size=16, drop_remainder=True),
            "epochs": 3,
            "progress": False,
        } | changes
        return fit(**arguments)

    return start


def same(a, b):
    chex.assert_trees_all_equal(a[0]._replace(key=None), b[0]._replace(key=None))
    assert a[1] == b[1]


def test_hooks_see_every_epoch_and_the_steps_asked_for(run):
    seen, epochs = [], []

    def note(status: Status) -> None:
        seen.append((status.epoch, status.step, int(status.state.step), len(status.history), status.metrics["loss"]))

    def at_the_end(status: Status) -> None:
        epochs.append((status.epoch, status.step, status.history[-1]["epoch"], status.metrics["loss"]))

    _, history = run(after_steps={4: note, 7: [note]}, after_epoch=at_the_end)
    assert [row[:4] for row in seen] == [(1, 4, 4, 0), (2, 7, 7, 1), (2, 8, 8, 1), (3, 12, 12, 2), (3, 14, 14, 2)]
    assert [row[:3] for row in epochs] == [(1, 5, 1), (2, 10, 2), (3, 15, 3)]
    every = []
    same(run(after_steps={1: lambda status: every.append(status.metrics["loss"])}), run())
    assert [row[4] for row in seen] == [every[i - 1] for i in (4, 7, 8, 12, 14)], "of that step, not of an earlier one"
    assert [row[3] for row in epochs] == [every[i - 1] for i in (5, 10, 15)]
    np.testing.assert_allclose([row["loss"] for row in history], np.reshape(every, (3, 5)).mean(1), rtol=1e-6)


def test_a_hook_changes_the_state_and_the_next_sees_it(run):
    def halve(status):
        found = status.state.opt_state
        rate = found.hyperparams["learning_rate"] / 2
        return status.state._replace(opt_state=found._replace(hyperparams=found.hyperparams | {"learning_rate": rate}))

    rates = []

    def look(status):
        rates.append(float(status.state.opt_state.hyperparams["learning_rate"]))

    changed, _ = run(after_epoch=[halve, look])
    np.testing.assert_allclose(rates, [0.01, 0.005, 0.0025], rtol=1e-6)
    assert changed.opt_state.hyperparams["learning_rate"] == np.float32(0.0025)
    plain, _ = run()
    assert np.abs(changed.params["w"] - plain.params["w"]).max() > 1e-3


def test_stopping_saves_and_returns(run, tmp_path):
    def stop(status):
        raise StopTraining("enough")

    full, history = run()
    state, rows = run(after_epoch=stop, checkpoints=tmp_path / "epoch")
    assert (rows, int(state.step), latest_step(tmp_path / "epoch")) == (history[:1], 5, 5)
    state, rows = run(after_steps={7: stop}, checkpoints=tmp_path / "step", checkpoint_every=100)
    assert (rows, int(state.step), latest_step(tmp_path / "step")) == (history[:1], 7, 7)
    for folder in ("epoch", "step"):
        same(run(checkpoints=tmp_path / folder, resume=True), (full, history))


def test_other_errors_of_a_hook_are_the_runs(run):
    with pytest.raises(ZeroDivisionError):
        run(after_epoch=lambda status: 1 / 0)
    with pytest.raises(TypeError, match="a hook must return a TrainState or None, got dict of <function"):
        run(after_steps={2: lambda status: {}})
    with pytest.raises(TypeError, match="after_epoch must be a function of the status, or several, got 3"):
        run(after_epoch=[3])
    with pytest.raises(ValueError, match="after_steps must be at least 1, got 0"):
        run(after_steps={0: print})


@pytest.mark.parametrize("size", [2, 5, 8])
def test_several_steps_at_once_train_the_same(size, run, tmp_path):
    seen = {1: [], size: []}
    found = {}
    for each in (1, size):
        found[each] = run(
            steps_per_dispatch=each,
            checkpoints=tmp_path / str(each),
            checkpoint_every=3,
            after_steps={4: lambda status, each=each: seen[each].append((status.step, status.metrics["loss"]))},
        )
    chex.assert_trees_all_close(found[1][0]._replace(key=None), found[size][0]._replace(key=None), rtol=1e-5, atol=1e-6)
    for one, many in zip(*(found[each][1] for each in (1, size)), strict=True):
        assert one.keys() == many.keys()
        np.testing.assert_allclose(list(one.values()), list(many.values()), rtol=1e-5)
    np.testing.assert_allclose(seen[1], seen[size], rtol=1e-5)
    assert [s for s, _ in seen[size]] == [4, 8, 12]
    names = [sorted(int(p.name) for p in (tmp_path / str(each)).iterdir()) for each in (1, size)]
    assert names[0] == names[1] == [9, 12, 15]


def test_groups_are_one_program_each_and_an_uneven_batch_goes_alone(net, data):
    lengths = []

    def apply(key, params, stats, x, *, train):
        lengths.append(x.shape[0])
        return net.apply(key, params, stats, x, train=train)

    optimizer = optax.sgd(0.1)
    state = init_train_state(jax.random.key(0), net.params, net.stats, optimizer)
    batches = shuffled_batches(jax.random.key(1), *data, batch_size=16, drop_remainder=False)  # 16 times 5, and 10
    step = make_train_step(apply, optimizer)
    last, _ = fit(state, step, batches, epochs=4, steps_per_dispatch=4, progress=False)
    assert last.step == 24
    # The group of four; the batch of 16 that is left with that of 10: one by one.
    assert lengths == [16, 16, 10]


@pytest.mark.parametrize("size", [1, 4])
def test_resume_with_groups_is_exact(size, run, data, tmp_path):
    batches = shuffled_batches(jax.random.key(1), *data, batch_size=9, drop_remainder=True)  # 10 an epoch

    def stop(status):
        raise StopTraining

    options = {"batches": batches, "steps_per_dispatch": size, "checkpoint_every": 6}
    straight = run(checkpoints=tmp_path / "straight", **options)
    run(checkpoints=tmp_path / "stopped", after_steps={12: stop}, **options)
    assert latest_step(tmp_path / "stopped") == 12
    same(run(checkpoints=tmp_path / "stopped", resume=True, **options), straight)


def test_measures_and_another_state_for_evaluation(run, steps, data):
    def measure(state):
        return {"norm": optax.tree.norm(state.params), "steps": int(state.step)}

    def at_zero(state):
        return state._replace(params=jax.tree.map(jnp.zeros_like, state.params))

    options = {"evaluate": steps[1], "eval_batches": ordered_batches(*data, batch_size=40)}
    state, history = run(measure=measure, eval_state=at_zero, **options)
    plain, expected = run(**options)
    chex.assert_trees_all_equal(state._replace(key=None), plain._replace(key=None))
    assert [row["eval_loss"] for row in history] == pytest.approx([np.log(3)] * 3)
    assert [row["steps"] for row in history] == [5, 10, 15]
    assert all(type(row["norm"]) is float for row in history)
    np.testing.assert_allclose(history[-1]["norm"], optax.tree.norm(state.params), rtol=1e-6)
    assert [row["loss"] for row in history] == [row["loss"] for row in expected]
    with pytest.raises(ValueError, match=r"columns of the history must have names of their own, got \['loss'\] twice"):
        run(measure=lambda state: {"loss": 1.0})


@pytest.fixture
def skipping(net, data):
    """A step that skips what is not finite, and batches of which every third is not."""
    batches = shuffled_batches(jax.random.key(1), *data, batch_size=9, drop_remainder=True)

    def broken(epoch):
        for i, (x, labels) in enumerate(batches(epoch)):
            yield (x * np.nan if i % 3 == 1 else x), labels

    def whole(epoch):
        return [batch for i, batch in enumerate(batches(epoch)) if i % 3 != 1]

    return make_train_step(net.apply, OPTIMIZER, skip_not_finite=True), broken, whole


@pytest.mark.parametrize("size", [1, 2])
def test_skipped_steps_leave_no_trace_but_a_count(size, run, skipping, tmp_path):
    step, broken, whole = skipping
    options = {"train_step": step, "steps_per_dispatch": size}
    with pytest.warns(RuntimeWarning) as caught:
        state, history = run(batches=broken, checkpoints=tmp_path, **options)
    assert [str(warning.message) for warning in caught] == [
        f"step {step} was skipped: its loss or its gradient is not finite" for step in (2, 12, 22)
    ], "once an epoch"
    expected, rows = run(batches=whole, **options | {"steps_per_dispatch": 1})
    assert state.step == expected.step == 21
    chex.assert_trees_all_close(state._replace(key=None), expected._replace(key=None), rtol=0 if size == 1 else 1e-5)
    assert [row.pop("skipped") for row in history] == [3, 3, 3]
    assert [row.pop("skipped") for row in rows] == [0, 0, 0]
    for row, other in zip(history, rows, strict=True):
        np.testing.assert_allclose(list(row.values()), list(other.values()), rtol=1e-5)
    assert latest_step(tmp_path) == 21


@pytest.mark.filterwarnings("ignore:step .* was skipped")
def test_too_many_skipped_steps_end_the_run_with_a_checkpoint(run, skipping, tmp_path):
    step, broken, _ = skipping
    message = "[23] steps of epoch 1 were skipped by step .*, since their loss or gradients were not finite; max_skipped is 1"
    with pytest.raises(FloatingPointError, match=message):
        run(train_step=step, batches=broken, max_skipped=1, checkpoints=tmp_path)
    assert latest_step(tmp_path) >= 3
    straight = run(train_step=step, batches=broken, max_skipped=3)
    same(run(train_step=step, batches=broken, checkpoints=tmp_path, resume=True), straight)
    with pytest.raises(ValueError, match="max_skipped must be at least 0, got -1"):
        run(max_skipped=-1)


def test_sigterm_saves_and_leaves(run, data, tmp_path, capfd):
    batches = shuffled_batches(jax.random.key(1), *data, batch_size=16, drop_remainder=True)

    def ending(epoch):
        for i, batch in enumerate(batches(epoch)):
            if (epoch, i) == (1, 2):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        run(batches=ending, checkpoints=tmp_path)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert capfd.readouterr().err == f"SIGTERM: saved step 8 in {tmp_path}\n"
    assert latest_step(tmp_path) == 8
    same(run(checkpoints=tmp_path, resume=True), run())
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_checkpoints_sigterm_is_left_alone(run):
    handlers = []
    run(epochs=1, after_epoch=lambda status: handlers.append(signal.getsignal(signal.SIGTERM)))
    assert handlers == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize("every", [None, 7])
def test_the_best_checkpoint_stays(every, run, tmp_path):
    losses = iter([0.5, 0.1, 0.4, 0.3, 0.2])
    options = {"best": "score", "best_mode": "min", "measure": lambda state: {"score": next(losses)}}
    run(epochs=5, keep=1, checkpoints=tmp_path, checkpoint_every=every, **options)
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [10, 25]
    assert best_step(tmp_path) == 10
    with pytest.raises(ValueError, match="best must be the name of a number in the newest row of the history, got 'nothing' for"):
        run(checkpoints=tmp_path / "other", best="nothing")
    with pytest.raises(ValueError, match=r"checkpoints must be a folder .* got None with resume=False and best='score'"):
        run(best="score")
    with pytest.raises(ValueError, match="evaluate must be given for an eval_state, got None"):
        run(eval_state=lambda state: state)


def test_profile_writes_a_trace(run, tmp_path):
    same(run(profile=tmp_path / "trace", epochs=5), run(epochs=5))
    traces = list(Path(tmp_path).rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 1000
    run(profile=tmp_path / "short", epochs=3)  # which ends within the trace
    assert list(Path(tmp_path / "short").rglob("*.xplane.pb"))
