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
import support
import torch
from IPython.display import display

import lrp

# %% tags=["parameters"]
MODEL = "vgg19"  # downloaded once: 548 MB
DATA = "input"  # <category>/<image>; the notebook analysis_confidence_score_original fills it
SIZE = None  # side of the model's input in pixels; None: what it was trained with
OUTPUT = "output"
SHOWN = 3  # pictures, of all that are made

# %%
model = support.model(MODEL)
support.demo_photos(DATA)

# %% [markdown]
# Every photo gives one line, and a picture at the same place below `output/`.

# %%
pictures = []
for result in lrp.explain_folder(DATA, OUTPUT, model, options=lrp.ExplainOptions(size=SIZE)):
    if result.error:
        print(f"skipped {result.path}: {result.error}")
        continue
    pictures.append(result.output)
    print(f"{result.output}: {result.facts['predicted']} {support.percent(result.facts['confidence'])}")

# %% [markdown]
# Above each heatmap stands how much of the class's logit reached the pixels, and where the rest went: mostly to the biases of a
# deep net. The hatched part was cropped away before the model saw the photo.

# %%
step = max(1, len(pictures) // SHOWN)
for picture in pictures[::step][:SHOWN]:
    display(support.show(picture))

# %% [markdown]
# The same in Python, for two of the photos at once:

# %%
net, preprocessing, class_names = lrp.load_model(model)
preprocessing = preprocessing.with_size(SIZE) if SIZE else preprocessing
explainer = lrp.Explainer(net, class_names=class_names, preprocessing=preprocessing)
photos = [lrp.open_photo(found.path) for found in lrp.find_photos([DATA])]
x = torch.stack([preprocessing(photo.pixels) for photo in (photos[0], photos[-1])])
explanation = explainer(x)
explanation

# %% [markdown]
# As `lrp explain` draws it, on the whole photo; `explanation.save("picture.png", photos[-1], index=1)` writes it to a file:

# %%
support.show(explanation.heatmap(photos[-1], index=1), width=560)
