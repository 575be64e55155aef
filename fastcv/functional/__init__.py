"""Functions with the names, arguments, defaults, errors and answers of ``torch.nn.functional``, on fastcv's kernels."""

from . import _batch_norm_max_pool2d, conv, loss, neighbors, norm, pool
from . import _fallback as _fallback  # before the functions are taken over: it guards them
from ._batch_norm_max_pool2d import *  # noqa: F403
from .conv import *  # noqa: F403
from .loss import *  # noqa: F403
from .neighbors import *  # noqa: F403
from .norm import *  # noqa: F403
from .pool import *  # noqa: F403

__all__ = [*_batch_norm_max_pool2d.__all__, *conv.__all__, *loss.__all__, *neighbors.__all__, *norm.__all__, *pool.__all__]
