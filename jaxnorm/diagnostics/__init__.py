"""What is wrong with a network: measurements of its activations, its statistics and its noise.

Meters of activations are pure functions of arrays, channels last as everywhere. A tree of them is measured by `jax.tree.map`:
what a function of one's own returns, or `linen_activations` and `nnx_activations` of a model.

>>> import flax.linen as nn, jax
>>> from jaxnorm.diagnostics import dead_units
>>> x = jax.random.normal(jax.random.key(0), (100, 3))
>>> hidden = {"first": nn.relu(x), "second": nn.relu(x - 9)}
>>> jax.tree.map(lambda dead: int(dead.sum()), jax.tree.map(dead_units, hidden))
{'first': 0, 'second': 3}

Others are functions of a loss `loss(params, batch)`, which `model_loss` makes of a model, bare or of Flax: gradients by layer and
their noise, the landscape along the gradient, internal covariate shift.

`lint` looks at a whole model, and says by itself what is wrong; `recommend` gives advice on that.
"""

from jaxnorm.diagnostics._lint.advice import Advice, recommend
from jaxnorm.diagnostics._lint.looking import lint
from jaxnorm.diagnostics._lint.report import Finding, Report
from jaxnorm.diagnostics._lint.step import lint_step
from jaxnorm.diagnostics.activations import (
    Sparsity,
    activation_percentiles,
    activation_sparsity,
    dead_units,
    saturated_share,
    unit_redundancy,
)
from jaxnorm.diagnostics.drift import StatisticsDrift, statistics_drift
from jaxnorm.diagnostics.gradients import GradientNoise, GradientNorms, gradient_noise, gradient_norms, layer_names
from jaxnorm.diagnostics.internal_covariate_shift import InternalCovariateShift, internal_covariate_shift
from jaxnorm.diagnostics.landscape import LossLandscape, loss_landscape
from jaxnorm.diagnostics.layer_metrics import layer_metrics
from jaxnorm.diagnostics.masked_model import MaskedModel, masked_model
from jaxnorm.diagnostics.models import model_loss, model_outputs
from jaxnorm.diagnostics.noise import (
    dropout_noise_variance,
    li_dense_shift_ratio,
    li_shift_ratio,
    noisy_dense_variance,
    noisy_variance,
    uniform_noise_variance,
)
from jaxnorm.diagnostics.recording import linen_activations, nnx_activations
from jaxnorm.diagnostics.scale_invariance import ScaleInvariance, scale_invariance
from jaxnorm.diagnostics.subnets import random_subnet_accuracy
from jaxnorm.diagnostics.variance_shift import VarianceShift, variance_shift

__all__ = [
    "Advice",
    "Finding",
    "GradientNoise",
    "GradientNorms",
    "InternalCovariateShift",
    "LossLandscape",
    "MaskedModel",
    "Report",
    "ScaleInvariance",
    "Sparsity",
    "StatisticsDrift",
    "VarianceShift",
    "activation_percentiles",
    "activation_sparsity",
    "dead_units",
    "dropout_noise_variance",
    "gradient_noise",
    "gradient_norms",
    "internal_covariate_shift",
    "layer_metrics",
    "layer_names",
    "li_dense_shift_ratio",
    "li_shift_ratio",
    "linen_activations",
    "lint",
    "lint_step",
    "loss_landscape",
    "masked_model",
    "model_loss",
    "model_outputs",
    "nnx_activations",
    "noisy_dense_variance",
    "noisy_variance",
    "random_subnet_accuracy",
    "recommend",
    "saturated_share",
    "scale_invariance",
    "statistics_drift",
    "uniform_noise_variance",
    "unit_redundancy",
    "variance_shift",
]
