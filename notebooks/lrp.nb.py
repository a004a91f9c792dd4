# ---
# jupyter:
#   jupytext:
#     formats: ipynb,.nb.py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which pixels made the model decide
#
# A heatmap for each photo in `input/`, by layer-wise relevance propagation: red pixels speak for the class that the model predicts,
# blue ones against it.
#
# *The outputs kept in this file are of an offline run (`LRP_OFFLINE=1`): the model that comes in a package, on photos made of
# a few free ones that come in packages. They show what to expect to see, and nothing about VGG19 or Imagenette; run the cells for that.*

# %%
from pathlib import Path

import torch
from IPython.display import display

import lrp
from lrp import notebook
from lrp.cli import demo, explain
from lrp.cli.common import load

# %% tags=["parameters"]
MODEL = "vgg19"  # downloaded once: 548 MB
DATA = "input"  # <category>/<image>; the notebook analysis_confidence_score_original fills it
SIZE = None  # side of the model's input in pixels; None: what it was trained with
OUTPUT = "output"
SHOWN = 3  # pictures, of all that are made

# %%
model = notebook.model(MODEL)
if not Path(DATA).is_dir():
    demo.write_photos(Path(DATA))
    print(f"Nothing is in {DATA}/ yet: here are the photos of `lrp demo`.")

# %% [markdown]
# Every photo gives one line, and a picture at the same place below `output/`.

# %%
counts = explain.run([Path(DATA)], Path(OUTPUT), model, size=SIZE)

# %% [markdown]
# Above each heatmap stands how much of the class's logit reached the pixels, and where the rest went: mostly to the biases of a
# deep net. The hatched part was cropped away before the model saw the photo.

# %%
pictures = sorted(Path(OUTPUT, photo.relative.with_suffix(".png")) for photo in lrp.find_photos([DATA]))
step = max(1, len(pictures) // SHOWN)
for picture in pictures[::step][:SHOWN]:
    display(notebook.show(picture))

# %% [markdown]
# The same in Python, for two of the photos at once:

# %%
net, preprocessing, class_names = load(model, SIZE)
explainer = lrp.Explainer(net, class_names=class_names)
photos = [lrp.open_photo(found.path) for found in lrp.find_photos([DATA])]
x = torch.stack([preprocessing(photo.pixels) for photo in (photos[0], photos[-1])])
explainer(x)
