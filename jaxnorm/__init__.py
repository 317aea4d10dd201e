"""Batch norm and dropout for JAX: pure functions of `(key, params, state, x)`.

`jaxnorm.linen` and `jaxnorm.nnx` wrap them for Flax, `jaxnorm.training` trains with them.

Every transformation of jax takes them but `jax.experimental.jet`, which has no rules for custom derivatives, checkpoints and
barriers (nor for `jax.nn.relu`). For derivatives of high order along a line nest `jax.jvp`.
"""

from jaxnorm._dropout.adaptive import concrete_dropout, init_concrete_dropout, init_standout, standout, standout_mean
from jaxnorm._dropout.alpha import alpha_dropout
from jaxnorm._dropout.attention import drop_key
from jaxnorm._dropout.block import cutout, drop_block
from jaxnorm._dropout.dense import drop_connect_dense, drop_connect_moments
from jaxnorm._dropout.elementwise import (
    classic_dropout,
    dropout,
    gaussian_dropout,
    gaussian_noise,
    uniform_dropout,
    weight_scaled,
)
from jaxnorm._dropout.joins import fractal_join, fractal_join_mean, swapout, swapout_mean
from jaxnorm._dropout.masks import apply_mask, dropout_mask, example_keys
from jaxnorm._dropout.maxout import maxout
from jaxnorm._dropout.noisy_linear import init_noisy_linear, noisy_linear, noisy_linear_mean
from jaxnorm._dropout.patterns import drop_path, head_dropout, locked_dropout, spatial_dropout
from jaxnorm._dropout.pooling import max_pool_dropout, max_pool_dropout_mean
from jaxnorm._dropout.recurrent import zoneout, zoneout_mean
from jaxnorm._dropout.shake import shake_drop, shake_drop_mean, shake_shake, shake_shake_mean
from jaxnorm._dropout.tokens import patch_dropout, word_dropout
from jaxnorm._dropout.variational import init_variational_dropout, variational_dropout
from jaxnorm._dropout.variational_dense import (
    init_sparse_variational_dense,
    init_variational_dense,
    sparse_variational_dense,
    sparse_variational_dense_mean,
    variational_dense,
)
from jaxnorm._dropout.weights import drop_connect, embedding_dropout, mixout
from jaxnorm._norm.batch import (
    batch_norm,
    frozen_batch_norm,
    init_batch_norm,
    init_frozen_batch_norm,
    padding_mask,
)
from jaxnorm._norm.deviation import (
    init_lp_batch_norm,
    init_mean_only_batch_norm,
    lp_batch_norm,
    mean_only_batch_norm,
)
from jaxnorm._norm.evonorm import (
    evonorm_b0,
    evonorm_b1,
    evonorm_b2,
    evonorm_s0,
    evonorm_s1,
    evonorm_s2,
    init_evonorm_b0,
    init_evonorm_b1,
    init_evonorm_b2,
    init_evonorm_s0,
    init_evonorm_s1,
    init_evonorm_s2,
)
from jaxnorm._norm.ghost import ghost_batch_norm, init_ghost_batch_norm
from jaxnorm._norm.group import group_norm, init_group_norm, init_instance_norm, instance_norm
from jaxnorm._norm.kinds import (
    conditional_batch_norm,
    domain_batch_norm,
    init_conditional_batch_norm,
    init_domain_batch_norm,
    init_split_batch_norm,
    split_batch_norm,
)
from jaxnorm._norm.length import cosine_norm, init_scale_norm, scale_norm, unit_norm
from jaxnorm._norm.mixtures import (
    batch_instance_norm,
    init_batch_instance_norm,
    init_switchable_norm,
    init_tracked_instance_norm,
    init_virtual_batch_norm,
    reference_moments,
    switchable_norm,
    tracked_instance_norm,
    virtual_batch_norm,
)
from jaxnorm._norm.modulation import (
    adaptive_instance_norm,
    dynamic_tanh,
    init_dynamic_tanh,
    init_layer_scale,
    layer_scale,
    modulate,
)
from jaxnorm._norm.noisy import init_noisy_batch_norm, noisy_batch_norm
from jaxnorm._norm.renorm import batch_renorm, init_batch_renorm
from jaxnorm._norm.response import (
    filter_response_norm,
    global_response_norm,
    init_filter_response_norm,
    init_global_response_norm,
    local_response_norm,
)
from jaxnorm._norm.rms import gated_rms_norm, init_gated_rms_norm, init_rms_norm, rms_norm
from jaxnorm._norm.sample import init_layer_norm, layer_norm
from jaxnorm._norm.weights import (
    init_spectral_norm,
    init_weight_norm,
    init_weight_norm_from_data,
    spectral_norm,
    weight_norm,
    weight_standardization,
)
from jaxnorm._norm.whitening import (
    decorrelated_batch_norm,
    init_decorrelated_batch_norm,
    init_iterative_norm,
    iterative_norm,
)
from jaxnorm._types import (
    AffineParams,
    ConcreteDropoutParams,
    CovarianceStats,
    DynamicTanhParams,
    EvoNormParams,
    FilterResponseParams,
    GatedParams,
    LpStats,
    Moments,
    NoisyLinearParams,
    RenormStats,
    RunningMean,
    RunningStats,
    RunningVar,
    SparseVariationalDenseParams,
    SpectralStats,
    StandoutParams,
    SwitchableParams,
    VariationalDenseParams,
    VariationalDropoutParams,
    WeightNormParams,
)

__version__ = "0.1.0"

__all__ = [
    "AffineParams",
    "ConcreteDropoutParams",
    "CovarianceStats",
    "DynamicTanhParams",
    "EvoNormParams",
    "FilterResponseParams",
    "GatedParams",
    "LpStats",
    "Moments",
    "NoisyLinearParams",
    "RenormStats",
    "RunningMean",
    "RunningStats",
    "RunningVar",
    "SparseVariationalDenseParams",
    "SpectralStats",
    "StandoutParams",
    "SwitchableParams",
    "VariationalDenseParams",
    "VariationalDropoutParams",
    "WeightNormParams",
    "adaptive_instance_norm",
    "alpha_dropout",
    "apply_mask",
    "batch_instance_norm",
    "batch_norm",
    "batch_renorm",
    "classic_dropout",
    "concrete_dropout",
    "conditional_batch_norm",
    "cosine_norm",
    "cutout",
    "decorrelated_batch_norm",
    "domain_batch_norm",
    "drop_block",
    "drop_connect",
    "drop_connect_dense",
    "drop_connect_moments",
    "drop_key",
    "drop_path",
    "dropout",
    "dropout_mask",
    "dynamic_tanh",
    "embedding_dropout",
    "evonorm_b0",
    "evonorm_b1",
    "evonorm_b2",
    "evonorm_s0",
    "evonorm_s1",
    "evonorm_s2",
    "example_keys",
    "filter_response_norm",
    "fractal_join",
    "fractal_join_mean",
    "frozen_batch_norm",
    "gated_rms_norm",
    "gaussian_dropout",
    "gaussian_noise",
    "ghost_batch_norm",
    "global_response_norm",
    "group_norm",
    "head_dropout",
    "init_batch_instance_norm",
    "init_batch_norm",
    "init_batch_renorm",
    "init_concrete_dropout",
    "init_conditional_batch_norm",
    "init_decorrelated_batch_norm",
    "init_domain_batch_norm",
    "init_dynamic_tanh",
    "init_evonorm_b0",
    "init_evonorm_b1",
    "init_evonorm_b2",
    "init_evonorm_s0",
    "init_evonorm_s1",
    "init_evonorm_s2",
    "init_filter_response_norm",
    "init_frozen_batch_norm",
    "init_gated_rms_norm",
    "init_ghost_batch_norm",
    "init_global_response_norm",
    "init_group_norm",
    "init_instance_norm",
    "init_iterative_norm",
    "init_layer_norm",
    "init_layer_scale",
    "init_lp_batch_norm",
    "init_mean_only_batch_norm",
    "init_noisy_batch_norm",
    "init_noisy_linear",
    "init_rms_norm",
    "init_scale_norm",
    "init_sparse_variational_dense",
    "init_spectral_norm",
    "init_split_batch_norm",
    "init_standout",
    "init_switchable_norm",
    "init_tracked_instance_norm",
    "init_variational_dense",
    "init_variational_dropout",
    "init_virtual_batch_norm",
    "init_weight_norm",
    "init_weight_norm_from_data",
    "instance_norm",
    "iterative_norm",
    "layer_norm",
    "layer_scale",
    "local_response_norm",
    "locked_dropout",
    "lp_batch_norm",
    "max_pool_dropout",
    "max_pool_dropout_mean",
    "maxout",
    "mean_only_batch_norm",
    "mixout",
    "modulate",
    "noisy_batch_norm",
    "noisy_linear",
    "noisy_linear_mean",
    "padding_mask",
    "patch_dropout",
    "reference_moments",
    "rms_norm",
    "scale_norm",
    "shake_drop",
    "shake_drop_mean",
    "shake_shake",
    "shake_shake_mean",
    "sparse_variational_dense",
    "sparse_variational_dense_mean",
    "spatial_dropout",
    "spectral_norm",
    "split_batch_norm",
    "standout",
    "standout_mean",
    "swapout",
    "swapout_mean",
    "switchable_norm",
    "tracked_instance_norm",
    "uniform_dropout",
    "unit_norm",
    "variational_dense",
    "variational_dropout",
    "virtual_batch_norm",
    "weight_norm",
    "weight_scaled",
    "weight_standardization",
    "word_dropout",
    "zoneout",
    "zoneout_mean",
]
