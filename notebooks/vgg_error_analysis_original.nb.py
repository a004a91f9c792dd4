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
from pathlib import Path

from IPython.display import display
from lrp.cli.table_model import gallery

from lrp import notebook
from lrp.cli import errors
from lrp.cli.common import device
from lrp.study import folder as study
from lrp.study import plots
from lrp.study.heatmaps import explain_mistakes

# %% tags=["parameters"]
MODEL = "vgg19"  # downloaded once: 548 MB
DATA = "imagenette"
SIZE = "320px"  # 342 MB to download; "160px" is 99 MB, "full" 1.6 GB
RESULTS = "vgg19_results_original.csv"
COUNT = 8  # mistakes in the tables
EXPLAINED = 2  # of them with heatmaps

# %%
folder = notebook.photos(DATA, SIZE)
results = notebook.results(RESULTS, notebook.model(MODEL), folder, device("auto"))

# %%
found = study.errors(results, "output/errors", count=COUNT)
errors.show(found, COUNT)

# %% [markdown]
# Rows are the true classes, columns what they were taken for:

# %%
notebook.show(plots.plot_confusion(found.confusion))

# %% [markdown]
# Of the photos with a confidence of 70 %, 70 % should be right:

# %%
notebook.show(plots.plot_reliability(found.calibration))

# %% [markdown]
# The most confident mistakes:

# %%
worst = found.confusion.mistakes[:EXPLAINED]
if worst:
    display(notebook.show(f"{found.written.folder}/mistakes.png"))

# %% [markdown]
# Why the wrong class, why not the true one (its own heatmap: blue speaks against it), and the contrast of the two: what speaks for the
# one rather than the other.

# %%
if worst:
    made = explain_mistakes(
        worst,
        {path: Path(file) for path, file in found.written.photos.items()},
        gallery(results, worst, None, None, None, "auto"),
        "output/errors/mistakes",
    )
    for one in made:
        display(notebook.show(one.output) if one.output else one.error)
