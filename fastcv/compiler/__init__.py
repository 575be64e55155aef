"""The torch.compile backend "fastcv". The installed package's entry point makes the name known to torch; in a checkout that is
not installed, importing this module does. (Importing fastcv alone does not: it would import the compiler of torch as well.)
"""

import torch._dynamo

from .backend import fastcv

if "fastcv" not in torch._dynamo.list_backends(exclude_tags=()):
    torch._dynamo.register_backend(fastcv, name="fastcv")

__all__ = ["fastcv"]
