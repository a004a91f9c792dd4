"""Explain a photo with a file that `lrp export` wrote.

    python onnx_explain.py explain.onnx photo.jpg picture.png

Needs onnxruntime, numpy and Pillow; neither torch nor lrp.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

file, photo, picture = sys.argv[1:]
session = onnxruntime.InferenceSession(file)
facts = session.get_modelmeta().custom_metadata_map
classes, how = json.loads(facts["classes"]), json.loads(facts["preprocessing"])

# As in training: the shorter side at one length, the middle of that, minus the mean, by the spread.
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
size = [int(how["resize"] * length / min(image.size)) for length in image.size]
image = image.resize(size, Image.Resampling[how["interpolation"].upper()])
left, top = (round((length - seen) / 2) for length, seen in zip(size, how["crop"][::-1], strict=True))
image = image.crop((left, top, left + how["crop"][1], top + how["crop"][0]))
x = ((np.asarray(image) / 255 - how["mean"]) / how["std"]).transpose(2, 0, 1)[None].astype(np.float32)

logits, relevance = session.run(["logits", "relevance"], {"image": x})
for i in np.argsort(-logits[0])[:3]:
    print(f"{classes[i]}: logit {logits[0, i]:.2f}")

# Red argues for the class, blue against it; half a per cent of the pixels has the full colour.
shown = relevance[0].sum(0)[..., None]
strength = np.minimum(np.abs(shown) / np.percentile(np.abs(shown), 99.5), 1)
heatmap = 255 - strength * (255 - np.where(shown > 0, [178, 24, 43], [33, 102, 172]))
Image.fromarray(np.hstack([np.asarray(image), heatmap.astype(np.uint8)])).save(picture)
