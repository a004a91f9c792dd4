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
# # Accuracy on Imagenette
#
# How often classifiers trained on ImageNet are right on Imagenette, ten of its classes that are easy to tell apart: side by
# side, with 95 % intervals.
#
# *The outputs kept in this file are of an offline run (`LRP_OFFLINE=1`): the model that comes in a package, on photos made of
# a few free ones that come in packages. They show what to expect to see, and nothing about VGG19 or Imagenette; run the cells for that.*

# %%
import support

import lrp

# %% tags=["parameters"]
MODELS = ["alexnet", "vgg16", "vgg19", "resnet50"]  # downloaded once: 233, 528, 548 and 98 MB
DATA = "imagenette"
SIZE = "320px"  # 342 MB to download; "160px" is 99 MB, "full" 1.6 GB

# %%
models = support.models(MODELS)
data = lrp.DataSet.open(support.photos(DATA, SIZE))
print(f"{data.split}/: {sum(1 for _ in data):,} photos of {len(data.categories)} classes")

# %% [markdown]
# Each model predicts every photo, among all of its 1,000 classes. Its table of predictions stays in the folder `accuracy/`: what
# is there is not computed again.

# %%
bar = support.progress("evaluating")
found = list(
    lrp.accuracy(data, models, f"accuracy/{DATA}", advance=lambda model, done, total: bar(done, total, model))
)
for one in found:
    if one.error:
        print(f"{one.model}: {one.error}")
measured = {one.model: one.accuracy for one in found if one.accuracy}
support.table(
    "Accuracy",
    ("model", ">photos", ">top-1 (95 % interval)", ">top-5 (95 % interval)", ">mean loss"),
    [
        [model, f"{a.counted:,}", str(a.top1 or ""), str(a.top5 or ""), support.number(a.loss)]
        for model, a in measured.items()
    ],
)

# %%
support.show(lrp.plot_accuracy(measured))

# %% [markdown]
# And class by class:

# %%
support.show(lrp.plot_class_accuracy(measured))
