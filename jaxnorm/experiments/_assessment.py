"""What the experiment `variance_shift` measures."""

from typing import NamedTuple

import jax

from jaxnorm.experiments._shift import Shift, Variances


class NormAssessment(NamedTuple):
    """What is measured on trained networks with batch norm, with the seeds along the first axis."""

    reestimated_accuracy: jax.Array
    variances: Variances
    shift: Shift


class Assessment(NamedTuple):
    """What is measured on trained networks, with the seeds along the first axis; `norms` is None without batch norm."""

    train_accuracy: jax.Array
    test_accuracy: jax.Array
    test_nll: jax.Array
    norms: NormAssessment | None
