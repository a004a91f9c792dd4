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
# # Where the original model is wrong, and why
#
# What the model takes for what, whether its confidences are worth their name, and for its most confident mistakes the pixels that
# speak for the wrong class and against the right one.
#
# *The outputs kept in this file are of an offline run (`LRP_OFFLINE=1`): the model that comes in a package, on photos made of
# a few free ones that come in packages. They show what to expect to see, and nothing about VGG19 or Imagenette; run the cells for that.*

# %%
import support
from IPython.display import display

import lrp

# %% tags=["parameters"]
MODEL = "vgg19"  # downloaded once: 548 MB
DATA = "imagenette"
SIZE = "320px"  # 342 MB to download; "160px" is 99 MB, "full" 1.6 GB
RESULTS = "vgg19_results_original.csv"
COUNT = 8  # mistakes in the tables
EXPLAINED = 2  # pictures shown, of those with heatmaps

# %%
folder = support.photos(DATA, SIZE)
results = support.results(RESULTS, support.model(MODEL), folder)

# %%
found = lrp.mistakes(results, "output/errors", count=COUNT, explain=True)
worst = found.confusion.mistakes[:COUNT]
print(
    f"{found.accuracy.counted} images, {len(found.confusion.mistakes)} mistakes: top-1 {found.accuracy.top1}"
)
print(f"expected calibration error {support.percent(found.calibration.ece)}\n")
support.table(
    "Most often taken for another",
    ("true", "predicted", ">images", ">of the class"),
    [[p.true, p.predicted, str(p.count), support.percent(p.share)] for p in found.confusion.pairs[:COUNT]],
)
support.table(
    "Most confident mistakes",
    ("predicted", ">confidence", "true", ">its confidence", "photo"),
    [
        [
            row.predicted_label, support.percent(row.predicted_confidence), row.true_label,
            support.percent(row.true_confidence), row.path,
        ]
        for row in worst
    ],
)  # fmt: skip

# %% [markdown]
# Rows are the true classes, columns what they were taken for:

# %%
support.show(lrp.plot_confusion(found.confusion))

# %% [markdown]
# Of the photos with a confidence of 70 %, 70 % should be right:

# %%
support.show(lrp.plot_reliability(found.calibration))

# %% [markdown]
# The most confident mistakes:

# %%
if worst:
    display(support.show(f"{found.written.folder}/mistakes.png"))

# %% [markdown]
# Why the wrong class, why not the true one (its own heatmap: blue speaks against it), and the contrast of the two: what speaks for the
# one rather than the other.

# %%
for one in found.explained[:EXPLAINED]:
    display(support.show(one.output) if one.output else one.error)
