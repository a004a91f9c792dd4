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
# # VGG19 retrained on Imagenette, and what that changed
#
# VGG19 gets a last layer with an output for each class of Imagenette, which is trained; then both models are set against each
# other: accuracy, photos gained and lost, and what each looks at.
#
# *The outputs kept in this file are of an offline run (`LRP_OFFLINE=1`): the model that comes in a package, on photos made of
# a few free ones that come in packages. They show what to expect to see, and nothing about VGG19 or Imagenette; run the cells for that.*

# %%
from pathlib import Path

from IPython.display import display
from lrp.cli.table_model import gallery

from lrp import DataSet, load_model, notebook
from lrp.cli import compare, tables
from lrp.cli.common import device
from lrp.study import folder as study
from lrp.study import plots
from lrp.study.evaluate import evaluate
from lrp.study.heatmaps import explain_changes
from lrp.train.retrain import retrain

# %% tags=["parameters"]
MODEL = "vgg19"  # downloaded once: 548 MB
DATA = "imagenette"
SIZE = "320px"  # 342 MB to download; "160px" is 99 MB, "full" 1.6 GB
ORIGINAL = "vgg19_results_original.csv"
RETRAINED = "vgg19_results_retrained.csv"
COUNT = 4  # photos in the tables and sheets
EXPLAINED = 1  # of them with heatmaps

# %%
model = notebook.model(MODEL)
folder = notebook.photos(DATA, SIZE)
weights = f"{model}_{DATA}.pth"

# %% [markdown]
# The layers below stay as they are: what they make of the photos is computed once and kept, and the last layer is trained on that.
# The computing is the long part; a GPU is taken where there is one. Stopped, the same cell goes on.

# %%
trained = retrain(folder, weights, model, device=device("auto"), advance=notebook.progress("training"))

# %%
for note in trained.notes:
    print(note)
print(f"{len(trained.history) - 1} epochs, the best is number {trained.metrics['epoch']}: "
      f"{tables.percent(trained.metrics['val_accuracy'])} of val is right")  # fmt: skip

# %%
notebook.show(plots.training(trained.history, trained.metrics["epoch"]))

# %% [markdown]
# The file of weights is a model like any other: every command takes it.

# %%
data, loaded = DataSet.open(folder), load_model(f"./{weights}")
advance = notebook.progress("evaluating")
found = evaluate(data, loaded, RETRAINED, name=f"./{weights}", device=device("auto"), advance=advance)
print(f"{found.output}: {found.correct:,} of {found.counts.get('ok', 0):,} are right")

# %% [markdown]
# ## Original against retrained

# %%
original = notebook.results(ORIGINAL, model, folder, device("auto"))
changed = study.compare(original, RETRAINED, "output/comparison", count=COUNT)
compare.show(changed.comparison, COUNT)

# %%
notebook.show(plots.plot_comparison(changed.comparison))

# %% [markdown]
# What each model sees for the true class, in photos that the retrained one gained:

# %%
twins = changed.comparison.gained[:EXPLAINED]
if twins:
    galleries = (
        gallery(original, [twin.a for twin in twins], None, None, None, "auto"),
        gallery(RETRAINED, [twin.b for twin in twins], None, None, None, "auto"),
    )
    names = "original", "retrained"
    made = explain_changes(
        twins,
        {path: Path(file) for path, file in changed.written.photos.items()},
        galleries,
        "output/comparison/gained",
        names=names,
    )
    for one in made:
        display(notebook.show(one.output) if one.output else one.error)
