"""Modules that subclass torch.nn's: same constructor, state_dict and repr; only ``forward`` differs."""

from . import conv, loss, norm, pool, sync_batch_norm
from .conv import *  # noqa: F403
from .loss import *  # noqa: F403
from .norm import *  # noqa: F403
from .pool import *  # noqa: F403
from .sync_batch_norm import *  # noqa: F403

__all__ = [*conv.__all__, *loss.__all__, *norm.__all__, *pool.__all__, *sync_batch_norm.__all__]
