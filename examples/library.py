"""The library without a server: a model adapts to a folder's pictures, in the order of their names.

python library.py photos
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ttc_core.load import load
from ttc_core.methods import create

model = load("bundled")  # or torchvision/resnet50, cifar/resnet20@FILE, …
method = create("ttc_stream", model, guard="on")  # one for each camera, on the same model

for path in sorted(Path(sys.argv[1]).iterdir()):
    pixels = np.array(model.geometry.apply(Image.open(path)))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1, 3, H, W), uint8
    prediction = method.predict(images)
    print(path.name, model.class_names[int(prediction.probabilities.argmax())])
    method.adapt(prediction)  # only now: no answer waits for it
