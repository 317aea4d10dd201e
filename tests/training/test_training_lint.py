"""What `fit(lint=True)` prints before the first step, and that it changes nothing."""

import chex
import jax
import optax
import pytest

import jaxnorm
from jaxnorm.training import fit, init_train_state, make_train_step, ordered_batches

SGD = optax.sgd(0.1)


def unchanging(key, params, stats, x, *, train):
    """A model whose running statistics are thrown away, and whose noise is always the same."""
    hidden, _ = jaxnorm.batch_norm(params["norm"], stats, x @ params["w"], train=train)
    hidden = jaxnorm.dropout(jax.random.key(0), jax.nn.relu(hidden), 0.3) if train else jax.nn.relu(hidden)
    return hidden @ params["out"], stats


def run(apply, net, data, step=None, **options):
    state = init_train_state(jax.random.key(0), net.params, net.stats, SGD)
    step = make_train_step(apply, SGD) if step is None else step
    batches = ordered_batches(*data, batch_size=45)
    state, history = fit(state, step, iter(batches), epochs=1, steps_per_epoch=2, progress=False, **options)
    return state._replace(key=None), history


@pytest.mark.slow
def test_a_healthy_run_prints_nothing_and_has_the_same_bits(net, data, capsys):
    with_lint, without = (run(net.apply, net, data, lint=lint) for lint in (True, False))
    assert capsys.readouterr() == ("", "")
    chex.assert_trees_all_equal(with_lint[0], without[0])
    assert with_lint[1] == without[1]


@pytest.mark.slow
def test_faults_of_the_model_and_of_the_step_are_printed_once(net, data, capsys):
    def step(state, batch):
        new, metrics = make_train_step(unchanging, SGD)(state, batch)
        return new._replace(step=state.step), metrics

    inner = make_train_step(unchanging, SGD)
    run(unchanging, net, data, inner, lint=True)
    printed = capsys.readouterr().err
    assert printed.count("key-constant at") == 1
    assert printed.count("averages-not-updated at") == 1
    assert "test_training_lint.py" in printed
    run(unchanging, net, data, step, lint=True)
    assert "averages-not-updated at stats" in capsys.readouterr().err, "of a step by hand its own lint"


@pytest.mark.slow
def test_schedules_and_unpacked_batches_reach_the_model(net, data, capsys):
    def unpack(batch):
        return batch["x"], batch["y"]

    schedules = {"rate": optax.constant_schedule(0.3), "momentum": optax.constant_schedule(0.1)}
    step = make_train_step(net.apply, SGD, schedules=schedules, unpack=unpack)
    state = init_train_state(jax.random.key(0), net.params, net.stats, SGD)
    batches = [{"x": data[0], "y": data[1]}]
    fit(state, step, batches, epochs=1, progress=False, lint=True)
    assert "averages-too-short" in capsys.readouterr().err


def test_bad_flags_are_told(net, data, monkeypatch):
    arguments = (init_train_state(jax.random.key(0), net.params, net.stats, SGD), make_train_step(net.apply, SGD), [data])
    with pytest.raises(TypeError, match="lint must be True or False"):
        fit(*arguments, epochs=1, lint="warning")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="lint must be False in several processes"):
        fit(*arguments, epochs=1, lint=True)
