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
import support
from IPython.display import display

import lrp

# %% tags=["parameters"]
MODEL = "vgg19"  # downloaded once: 548 MB
DATA = "imagenette"
SIZE = "320px"  # 342 MB to download; "160px" is 99 MB, "full" 1.6 GB
ORIGINAL = "vgg19_results_original.csv"
RETRAINED = "vgg19_results_retrained.csv"
COUNT = 4  # photos in the tables and sheets
EXPLAINED = 1  # pictures shown, of those with heatmaps

# %%
model = support.model(MODEL)
folder = support.photos(DATA, SIZE)
weights = f"{model}_{DATA}.pth"

# %% [markdown]
# The layers below stay as they are: what they make of the photos is computed once and kept, and the last layer is trained on that.
# The computing is the long part; a GPU is taken where there is one. Stopped, the same cell goes on.

# %%
trained = lrp.retrain(folder, weights, model, advance=support.progress("training"))

# %%
for note in trained.notes:
    print(note)
print(f"{len(trained.history) - 1} epochs, the best is number {trained.metrics['epoch']}: "
      f"{support.percent(trained.metrics['val_accuracy'])} of val is right")  # fmt: skip

# %%
support.show(lrp.plot_training(trained.history, trained.metrics["epoch"]))

# %% [markdown]
# The file of weights is a model like any other: every command takes it.

# %%
found = lrp.evaluate(folder, f"./{weights}", RETRAINED, advance=support.progress("evaluating"))
print(f"{found.output}: {found.correct:,} of {found.counts.get('ok', 0):,} are right")

# %% [markdown]
# ## Original against retrained

# %%
original = support.results(ORIGINAL, model, folder)
changed = lrp.compare(original, RETRAINED, "output/comparison", count=COUNT, explain=True)
comparison = changed.comparison
both = comparison.overall
print(f"original {both.a}, retrained {both.b}: {both.gained} photos gained, {both.lost} lost\n")
for title, twins in (("Gained", comparison.gained), ("Lost", comparison.lost)):
    support.table(
        f"{title}: {min(COUNT, len(twins))} of {len(twins)}",
        ("true", "original", "retrained", "photo"),
        [[t.a.true_label, t.a.predicted_label, t.b.predicted_label, t.a.path] for t in twins[:COUNT]],
    )

# %%
support.show(lrp.plot_comparison(comparison))

# %% [markdown]
# What each model sees for the true class, in photos that the retrained one gained:

# %%
for one in changed.explained[:EXPLAINED]:
    display(support.show(one.output) if one.output else one.error)
