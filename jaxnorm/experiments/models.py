"""Thirteen small models of the literature that are built on norms and noise: what taking a layer out costs."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import _picture as picture
from jaxnorm.experiments._experiment import Drawing, Experiment, Found, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._models import (
    attention,
    autoencoder,
    critic,
    dilated,
    fast_weights,
    fractional_pooling,
    highway,
    mixture_of_experts,
    network_in_network,
    qanet,
    recurrent_highway,
    residual,
    transformer,
)
from jaxnorm.experiments._models._model import Model
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._report import spread
from jaxnorm.experiments._training import over_seeds

MODELS: Mapping[str, Model] = {
    "residual network": residual.MODEL,
    "highway network": highway.MODEL,
    "network in network": network_in_network.MODEL,
    "fractional max-pooling": fractional_pooling.MODEL,
    "transformer": transformer.MODEL,
    "QANet": qanet.MODEL,
    "recurrent highway network": recurrent_highway.MODEL,
    "fast weights": fast_weights.MODEL,
    "dilated convolutions": dilated.MODEL,
    "attention": attention.MODEL,
    "mixture of experts": mixture_of_experts.MODEL,
    "GAN critic": critic.MODEL,
    "variational autoencoder": autoencoder.MODEL,
}
_LAYERS = [(arm, kind) for kind in ("norm", "noise") for arm, model in MODELS.items() if kind in model.runs]
_MISSED = 1.0  # points, from which on a layer that is taken out is missed
_LEAST = {"norm": 5.0, "noise": 1.0, ("mixture of experts", "noise"): 5.0, ("variational autoencoder", "noise"): 5.0}


def measure(model: Model, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains a model with its layers and without, all of it in one program."""
    switches = jnp.asarray(list(model.runs.values())) * options.layers
    steps = max(1, model.steps * options.percent // 100)

    def networks(key: jax.Array) -> Mapping[str, jax.Array]:
        return jax.vmap(lambda on: model.run(key, on, steps))(switches)

    found = over_seeds(networks)(keys)
    return dict(zip(model.runs, found["score"].T, strict=True)) | {"invariant": found["invariant"][:, 0]}


def _gain(arm: str, kind: str) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * (found[arm]["with"] - found[arm][kind])


def _missed(found: Found) -> np.ndarray:
    return np.sum([_gain(*layer)(found) >= _MISSED for layer in _LAYERS], axis=0)


def _lost(other: str) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * (found["transformer"]["with"] - found["transformer"][other])


def _draw(kind: str) -> Callable[..., None]:
    """Returns what draws the scores of all models with and without a kind of layer, as pairs of bars."""

    def draw(axes: Any, found: Found, colors: Mapping[str, str], options: Options) -> None:
        arms = [arm for arm, own in _LAYERS if own == kind]
        for side, (run, color, hatch) in enumerate((("with", picture.BLUE, ""), (kind, picture.ORANGE, "///"))):
            means = np.array([100 * found[arm][run].mean() for arm in arms])
            deviations = np.array([100 * spread(found[arm][run]) for arm in arms])
            rows = np.arange(len(arms)) + 0.38 * side - 0.19
            label = "with its layers" if run == "with" else "taken out"
            axes.barh(rows, means, 0.36, color=color, hatch=hatch, edgecolor="white", label=label)
            axes.errorbar(means, rows, xerr=deviations, fmt="none", color=picture.GRAY, linewidth=1.2, capsize=2)
            for row, mean, deviation in zip(rows, means, deviations, strict=True):
                axes.text(mean + deviation + 1.5, row, f"{mean:.0f}", va="center", fontsize=10)
        scores = {arm: f"\n({MODELS[arm].score}, %)" if MODELS[arm].score != "test accuracy" else "" for arm in arms}
        names = [f"{arm}: {MODELS[arm].layers[kind]}{scores[arm]}" for arm in arms]
        axes.set_yticks(range(len(arms)), names, fontsize=10)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlim=(0, 112), xticks=range(0, 101, 25), xlabel="test accuracy, % (or what a row says)")
        axes.set_title("Norms" if kind == "norm" else "Noise")
        if kind == "norm":
            axes.legend(loc="lower right", bbox_to_anchor=(1.02, 0.99), ncols=2, fontsize=10.5)

    return draw


def _on_or_off(text: str) -> int:
    """Returns 1 or 0."""
    if text not in ("0", "1"):
        raise argparse.ArgumentTypeError(f"must be 0 or 1, got {text!r}")
    return int(text)


_ROLES = " ".join(f"{name[0].upper()}{name[1:]}: {model.role}." for name, model in MODELS.items())
EXPERIMENT = Experiment(
    claim="Small models of the literature train on these layers and miss most if taken out",
    sources=tuple(model.source for model in MODELS.values()),
    options=(
        Option("layers", _on_or_off, 1, 1, "whether there are norms and noise: 0 takes them out of all"),
        Option("percent", count, 100, 25, "of each model's training steps"),
    ),
    arms=MODELS,
    measure=measure,
    quantities=(
        Quantity("with", "with its layers, %", 1, 100),
        Quantity("norm", "norm out, %", 1, 100),
        Quantity("noise", "noise out, %", 1, 100),
        Quantity("RMS norm", "RMS norm instead, %", 1, 100),
        Quantity("dynamic tanh", "dynamic tanh instead, %", 1, 100),
        Quantity("zoneout", "zoneout instead, %", 1, 100),
        Quantity("invariant", "invariant off by", 3),
    ),
    parts=(
        Part(
            "4.11",
            f"layers that are missed by {_MISSED:g} point or more when taken out, of {len(_LAYERS)}",
            _missed,
            at_least(len(_LAYERS) // 2 + 1),
            1,
        ),
        Part(
            "4.11",
            "lowest score of a model with its layers, %",
            lambda found: np.min([100 * of["with"] for of in found.values()], axis=0),
            at_least(40),
            1,
        ),
        Part(
            "4.11",
            "largest violation of an invariant of the layers of a trained model",
            lambda found: np.max([of["invariant"] for of in found.values()], axis=0),
            at_most(0.01),
            4,
        ),
        *(
            Part(
                "4.11",
                f"{arm}, {MODELS[arm].layers[kind]}: {MODELS[arm].score} gained, points",
                _gain(arm, kind),
                at_least(_LEAST.get((arm, kind), _LEAST[kind])),
                1,
            )
            for arm, kind in _LAYERS
        ),
        *(
            Part("4.11", f"transformer, {other} in place of layer norm: test accuracy lost, points", _lost(other), at_most(2), 1)
            for other in ("RMS norm", "dynamic tanh")
        ),
    ),
    panels=(Drawing(_draw("norm")), Drawing(_draw("noise"))),
    protocol=(
        "Each model is trained with its layers, and with one of them taken out, from the same keys. Digits are scikit-learn's, "
        "100 or 300 for training (1,000 for mixture and autoencoder), also as 8 rows or 64 pixels in turn; fast weights recall "
        "one of four pairs of symbols; the critic's samples should lie on a ring of eight modes, each within three standard "
        f"deviations of one and all modes alike. {_ROLES}"
    ),
    note=(
        "A layer without effect is missed in some seeds by chance: its own row says whether it gains beyond that. Norms are "
        "missed where depth or recurrence lets signals grow; that noise regularizes shows in none of these models at 100 to 300 "
        "digits, while noise that a model is built on, of gates and of codes, it cannot do without."
    ),
    control={"layers": 0},
)
