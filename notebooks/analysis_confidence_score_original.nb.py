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
import support
from IPython.display import display

import lrp

# %% tags=["parameters"]
MODEL = "vgg19"  # downloaded once, if the table is not there: 548 MB
DATA = "imagenette"
SIZE = "320px"  # 342 MB to download; "160px" is 99 MB, "full" 1.6 GB
RESULTS = "vgg19_results_original.csv"
COUNT = 2  # of each kind: over all, and of each class
INPUT = "input"

# %%
folder = support.photos(DATA, SIZE)
results = support.results(RESULTS, support.model(MODEL), folder)

# %%
found = lrp.confidence(results, "output/confidence", count=COUNT, copy_to=INPUT)
overall = found.picks.overall
for title, rows in (("Correct and surest", overall.highest), ("Correct and least sure", overall.lowest)):
    support.table(
        title,
        (">confidence", "class", "photo"),
        [[support.percent(row.predicted_confidence), row.true_label, row.path] for row in rows],
    )
print(f"{len(found.copied)} photos are in {INPUT}/ now.")

# %% [markdown]
# One sheet of all classes together, and one of each class, of which the first is shown here:

# %%
sheets = [name for name in found.written.files if name.endswith(".png")]
for sheet in sheets[:2]:
    display(support.show(f"{found.written.folder}/{sheet}"))
