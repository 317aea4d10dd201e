from jaxnorm.statistics.adapters import linen_update, nnx_update
from jaxnorm.statistics.precise import adapt_stats, precise_stats
