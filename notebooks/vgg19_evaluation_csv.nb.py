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
# # VGG19 on Imagenette: the table of predictions
#
# What VGG19 predicts for every photo of Imagenette's validation set, how sure it is, and whether it is right: the table
# `vgg19_results_original.csv`, which the next notebooks read.
#
# *The outputs kept in this file are of an offline run (`LRP_OFFLINE=1`): the model that comes in a package, on photos made of
# a few free ones that come in packages. They show what to expect to see, and nothing about VGG19 or Imagenette; run the cells for that.*

# %%
from pathlib import Path

import support

import lrp

# %% tags=["parameters"]
MODEL = "vgg19"  # downloaded once: 548 MB
DATA = "imagenette"
SIZE = "320px"  # 342 MB to download; "160px" is 99 MB, "full" 1.6 GB
RESULTS = "vgg19_results_original.csv"

# %%
model = support.model(MODEL)
data = support.photos(DATA, SIZE)

# %% [markdown]
# One row for each file. Stopped, the same cell goes on where it was; and what is up to date is not computed again.

# %%
found = lrp.evaluate(data, model, RESULTS, advance=support.progress("evaluating"))
ok = found.counts.get("ok", 0)
print(f"{found.output}: {found.total:,} files, {ok:,} of them predicted, {found.correct:,} correctly")

# %%
rows = lrp.read_predictions(RESULTS)
support.table(
    "A few of the rows",
    ("photo", "true", "predicted", ">confidence", ">of the true class", "correct"),
    [
        [
            Path(row.path).name, row.true_label, row.predicted_label, support.percent(row.predicted_confidence),
            support.percent(row.true_confidence), str(row.correct),
        ]
        for row in rows[:: max(1, len(rows) // 10)]
    ],
)  # fmt: skip

# %% [markdown]
# How often it is right, class by class:

# %%
support.show(lrp.plot_class_accuracy({model: found.accuracy}))
