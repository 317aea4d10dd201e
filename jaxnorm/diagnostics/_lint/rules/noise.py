"""Rules about noise: where it stands, and in which mode it is drawn."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxnorm.diagnostics._lint.look import Look
from jaxnorm.diagnostics._lint.program import Program
from jaxnorm.diagnostics._lint.records import Noise, Norm
from jaxnorm.diagnostics._lint.report import Finding, Severity
from jaxnorm.diagnostics._lint.rules._rule import rule
from jaxnorm.diagnostics.noise import noisy_variance

_NOTE_BELOW, _ERROR_ABOVE = 1.05, 1.25  # shifts of the variance

_IN_TRAINING_ALONE = {
    "linen": "Dropout(rate, deterministic=not train)(x)",
    "nnx": "Dropout(rate, rngs=rngs)(x), with no deterministic= in the call: model.train() and model.eval() decide",
    "haiku": "hk.dropout(hk.next_rng_key(), rate if train else 0.0, x)",
    "equinox": "model = eqx.nn.inference_mode(model, not train), with no inference= in the call",
}


@rule
def noise_before_batch_norm(look: Look) -> Iterator[Finding]:
    """Noise reaches batch statistics.

    It makes the variance of what enters the norm larger in training than in inference, where the averages of training are still
    what the norm divides by: the variance shift of Li et al. Severity follows the measured shift: a note below 1.05, a warning to
    1.25, an error above, or a warning where it can't be measured.

    Sick: `batch_norm(params, stats, dropout(key, x, 0.5), train=True)`.
    Healed: `y, stats = batch_norm(params, stats, x, train=True)`, then `dropout(key, y, 0.5)`, with no batch norm after it.
    """
    for norm in look.training.found.norms:
        if norm.kind != "batch" or not norm.noises:
            continue
        noises = _named(look.training, (arrival.noise for arrival in norm.noises))
        why, figures = f"the noise of {noises} reaches its batch statistics", {}
        if (shift := _measured(look, norm)) is not None:
            figures = {name: value for name, value in shift._asdict().items() if value is not None}
            by_channel = f"{shift.smallest:.2f} to {shift.largest:.2f} by channel"
            why += f": in training the variance of what enters is {shift.shift:.2f} times that in inference ({by_channel})"
            why += "" if shift.predicted is None else f"; {shift.predicted:.2f} was to be expected of noise right before a norm"
        fix = "move the noise behind the last batch norm, or jaxnorm.statistics.precise_stats(...) after training, without noise"
        yield Finding("noise-before-batch-norm", _severity(shift), norm.where, why, fix, figures)


class _Shift(NamedTuple):
    """The variance of what enters a norm in training over that in inference.

    Attributes:
      shift: of averages over the channels.
      smallest: by channel.
      largest: by channel.
      rate: of dropout as strong as the noise, where only one noise reaches the norm.
      predicted: the shift in closed form, where that noise stands right before the norm.
    """

    shift: float
    smallest: float
    largest: float
    rate: float | None
    predicted: float | None


def _severity(shift: _Shift | None) -> Severity:
    if shift is None:
        return "warning"
    size = max(shift.shift, 1 / shift.shift)
    return "note" if size < _NOTE_BELOW else "warning" if size <= _ERROR_ABOVE else "error"


def _measured(look: Look, norm: Norm) -> _Shift | None:
    """Returns the shift that a norm has when its averages have settled, or None where it can't be measured."""
    layer = _layers(norm)
    same = [other for other in look.training.found.norms if _layers(other) & layer]
    others = [other for other in look.inference.found.norms if other.kind == "averages" and _layers(other) & layer]
    if not layer or len(same) != len(others) or look.settled is None:
        return None
    clean = look.settled.moments.get(others[same.index(norm)].place)
    runs = [moments for run in look.noisy if (moments := run.moments.get(norm.place)) is not None]
    if clean is None or not runs:
        return None
    noisy, real = np.mean([run.var for run in runs], 0), np.asarray(clean.var)
    varies = real > 0
    if noisy.shape != real.shape or not varies.any():
        return None
    ratios, rate, expected = noisy[varies] / real[varies], None, None
    if (variance := _relative_variance(look, norm)) is not None:
        rate = variance / (1 + variance)
        if not norm.noises[0].linear:
            expected = float(np.mean(noisy_variance(clean.mean, clean.var, variance)) / np.mean(real))
    return _Shift(float(np.mean(noisy) / np.mean(real)), float(ratios.min()), float(ratios.max()), rate, expected)


def _layers(norm: Norm) -> set[str]:
    """Returns the paths of what the averages of a norm are in: Haiku's norms divide by other leaves than they update."""
    return {path.rpartition("/")[0] for path in norm.averages}


def _relative_variance(look: Look, norm: Norm) -> float | None:
    """Returns the variance of the one noise that scales what reaches a norm, where its mean is 1, or None."""
    if len(norm.noises) != 1:
        return None
    noise = look.training.found.noise(norm.noises[0].noise)
    mask = look.training.mask(noise) if noise.on == "data" and scales(look.training, noise) else None
    return None if mask is None else mask.var / mask.mean**2


@rule
def noise_before_max_pool(look: Look) -> Iterator[Finding]:
    """Noise reaches a maximum over a window, with no linear layer between.

    What is dropped is not missed where a neighbor is nearly as large, so that the rate means less than it says, and the mean of
    the maximum is another one in training than in inference.

    Sick: `max_pool(dropout(key, x, 0.5))`.
    Healed: `dropout(key, max_pool(x), 0.5)`.
    """
    for maximum in look.training.found.maxima:
        near = [arrival.noise for arrival in maximum.noises if not arrival.linear]
        if near:
            why = f"the noise of {_named(look.training, near)} reaches a maximum over a window: its mean differs in inference"
            fix = "move the noise behind the maximum, or jaxnorm.max_pool_dropout(key, x, rate, window=..., strides=...)"
            yield Finding("noise-before-max-pool", "warning", maximum.where, why, fix)


@rule
def noise_on_output(look: Look) -> Iterator[Finding]:
    """Noise multiplies the output, with no linear layer after it.

    The loss then sees outputs of 0, or too large ones, that no weights can make better. On a branch that is added to something
    else, as in an encoder of residual blocks, it is a note. Samples of latent variables are none of this.

    Sick: `dropout(key, x @ kernel, 0.5)`.
    Healed: `dropout(key, x, 0.5) @ kernel`.
    """
    program = look.training
    floating = [
        value
        for value, shape in zip(program.outputs, jax.tree.leaves(program.shapes[0]), strict=True)
        if jax.numpy.issubdtype(shape.dtype, jax.numpy.inexact)
    ]
    arrivals = {arrival for value in floating for arrival in value.noise if not arrival.linear}
    for noise in program.found.noises:
        own = [arrival for arrival in arrivals if arrival.noise == noise.place]
        if own and scales(program, noise):
            whole = any(arrival.whole for arrival in own)
            severity, why = ("warning", "multiplies") if whole else ("note", "is in a part of")
            fix = "move the noise before the last linear layer"
            yield Finding("noise-on-output", severity, noise.where, f"it {why} the output, with no linear layer after it", fix)


@rule
def noise_in_inference(look: Look) -> Iterator[Finding]:
    """Noise reaches the output in inference.

    Outputs then differ from call to call, and what is measured of the model is that of one of its subnets. Samples of latent
    variables are a note.

    Sick: `dropout(key, x, 0.5)`, whatever `train` is.
    Healed: `dropout(key, x, 0.5) if train else x`.
    """
    program = look.inference
    reaching = {arrival.noise for value in program.outputs for arrival in value.noise}
    noises = [noise for noise in program.found.noises if noise.place in reaching]
    if not noises:
        return
    differ = _differ(program.usual.outputs, program.run(key=jax.random.fold_in(look.model.key, 1)).outputs)
    seen = "two keys give two outputs" if differ else "random numbers reach the output, the same ones for two keys"
    for noise in noises:
        scaling = scales(program, noise)
        if not differ and (noise.on == "weights" or not scaling):
            continue  # a fixed choice of weights, or random features
        severity: Severity = "note" if not scaling else "error" if differ else "warning"
        why = f"it is drawn in inference: {seen}"
        yield Finding("noise-in-inference", severity, noise.where, why, _in_training_alone(look, noise.library))


@rule
def no_noise_in_training(look: Look) -> Iterator[Finding]:
    """Training never draws noise that the model has: a layer that is off in it, or noise that inference alone draws.

    Sick: `x if train else dropout(key, x, 0.5)`.
    Healed: `dropout(key, x, 0.5) if train else x`.
    """
    for where in look.model.silent:
        fix = _in_training_alone(look, look.model.library)
        yield Finding("no-noise-in-training", "warning", where, "training calls this layer, and it draws nothing", fix)
    drawn = {noise.where for noise in look.training.found.noises}
    for noise in look.inference.found.noises:
        if noise.where not in drawn and scales(look.inference, noise):
            why = "inference draws this noise, and training does not"
            yield Finding("no-noise-in-training", "error", noise.where, why, _in_training_alone(look, noise.library))


def _in_training_alone(look: Look, library: str) -> str:
    """Returns code that draws in training alone, of the library of a layer, or else of the model."""
    known = _IN_TRAINING_ALONE.get(library) or _IN_TRAINING_ALONE.get(look.model.library)
    return known or "x = jaxnorm.dropout(key, x, rate) if train else x"


def scales(program: Program, noise: Noise) -> bool:
    """Whether noise scales or drops what it meets, as dropout does: what adds, or is near 0 in the mean, samples."""
    mask = program.mask(noise)
    return noise.kind in ("factor", "choice") and (mask is None or mask.mean**2 > 0.05 * mask.var)


def _differ(a: object, b: object) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return not all(np.array_equal(one, other, equal_nan=True) for one, other in pairs)


def _named(program: Program, places: Iterable[object]) -> str:
    """Returns the places of noises for users, in the order of the program."""
    reaching = set(places)
    wheres = [noise.where for noise in program.found.noises if noise.place in reaching]
    return " and of ".join(dict.fromkeys(where.path or where.line for where in wheres))
