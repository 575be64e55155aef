"""The model zoo: one architecture per file, torchvision's names, keys and shapes wherever it has the model.

``get_model("resnet50", num_classes=10)`` or ``fastcv.models.resnet50(num_classes=10)``. Every model takes ``layers=``: fastcv.nn,
the default, or torch.nn; nothing else changes, neither the parameters' names nor their initial values under the same seed.
"""

# ruff: noqa: F403
from ._registry import *
from ._segmentation import as_tensor  # noqa: F401
from .alexnet import *
from .autoencoder import *
from .deconvnet import *
from .deeplabv3 import *
from .deeplabv3plus import *
from .densenet import *
from .fcn import *
from .lenet import *
from .linear import *
from .mlp import *
from .mlp_mixer import *
from .mobilenet_v1 import *
from .mobilenet_v2 import *
from .resnet import *
from .resnet_cifar import *
from .shufflenet_v2 import *
from .swin import *
from .unet import *
from .upernet import *
from .vgg import *
from .vit import *
from .weights import *
