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
# # Where the original model is sure, and where it is not
#
# Of the photos that the model gets right, those that it is surest and least sure of: they are worth explaining, and so are copied
# to `input/`, where the notebook `lrp` finds them.
#
# *The outputs kept in this file are of an offline run (`LRP_OFFLINE=1`): the model that comes in a package, on photos made of
# a few free ones that come in packages. They show what to expect to see, and nothing about VGG19 or Imagenette; run the cells for that.*

# %%
from IPython.display import display

from lrp import notebook
from lrp.cli import confidence
from lrp.cli.common import device
from lrp.study import folder as study

# %% tags=["parameters"]
MODEL = "vgg19"  # downloaded once, if the table is not there: 548 MB
DATA = "imagenette"
SIZE = "320px"  # 342 MB to download; "160px" is 99 MB, "full" 1.6 GB
RESULTS = "vgg19_results_original.csv"
COUNT = 2  # of each kind: over all, and of each class
INPUT = "input"

# %%
folder = notebook.photos(DATA, SIZE)
results = notebook.results(RESULTS, notebook.model(MODEL), folder, device("auto"))

# %%
found = study.confidence(results, "output/confidence", count=COUNT, copy_to=INPUT)
confidence.show("Correct and surest", found.picks.overall.highest)
confidence.show("Correct and least sure", found.picks.overall.lowest)
print(f"{len(found.copied)} photos are in {INPUT}/ now.")

# %% [markdown]
# One sheet of all classes together, and one of each class, of which the first is shown here:

# %%
sheets = [name for name in found.written.files if name.endswith(".png")]
for sheet in sheets[:2]:
    display(notebook.show(f"{found.written.folder}/{sheet}"))
