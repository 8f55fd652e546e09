"""Segment one image, print its objects and save the annotated image.

python examples/predict_image.py docs/street.jpg annotated.png
"""

import sys

import numpy as np
from PIL import Image

import streamseg

image, output = sys.argv[1:]
rgb = np.asarray(Image.open(image).convert("RGB"))
model = streamseg.load_model("nanomask", score=0.5)
instances = model.predict(rgb)
for name, score, mask in zip(instances.names, instances.scores, instances.masks, strict=True):
    print(f"{name} {score:.2f}: {mask.area} pixels")
Image.fromarray(streamseg.annotate(rgb, instances)).save(output)
