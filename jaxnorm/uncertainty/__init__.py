"""What the noise of a network knows: predictions from samples, ensembles in closed form, and calibration.

Samples of a network's outputs, of dropout that draws at test time or of several networks, make a prediction with its uncertainty:

>>> import jax, jax.numpy as jnp, jaxnorm
>>> from jaxnorm.uncertainty import mc_predict, predictive
>>> x, w = jnp.ones((2, 16)), 0.3 * jax.random.normal(jax.random.key(0), (16, 3))
>>> samples = mc_predict(jax.random.key(1), lambda key, x: jaxnorm.dropout(key, x, 0.5) @ w, x, 100)
>>> found = predictive(samples)
>>> found.probabilities.shape, bool((found.mutual_information > 0).all())
((2, 3), True)
"""

from jaxnorm.uncertainty.calibration import (
    BrierScore,
    CalibrationError,
    Reliability,
    brier_score,
    expected_calibration_error,
    reliability,
    temperature_scaling,
)
from jaxnorm.uncertainty.ensembles import Ensemble, Moments, exact_ensemble, fast_dropout_dense, relu_moments, sigmoid_mean
from jaxnorm.uncertainty.monte_carlo import mc_batch_norm, mc_predict
from jaxnorm.uncertainty.predictive import ClassPrediction, RealPrediction, predictive

__all__ = [
    "BrierScore",
    "CalibrationError",
    "ClassPrediction",
    "Ensemble",
    "Moments",
    "RealPrediction",
    "Reliability",
    "brier_score",
    "exact_ensemble",
    "expected_calibration_error",
    "fast_dropout_dense",
    "mc_batch_norm",
    "mc_predict",
    "predictive",
    "reliability",
    "relu_moments",
    "sigmoid_mean",
    "temperature_scaling",
]
