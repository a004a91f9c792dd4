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
# # Accuracy on Imagewoof
#
# How much of a model's trouble with Imagewoof, ten breeds of dogs, comes from the classes that are not in it: its accuracy among
# all its classes, and with only the data's classes competing.
#
# *The outputs kept in this file are of an offline run (`LRP_OFFLINE=1`): the model that comes in a package, on photos made of
# a few free ones that come in packages. They show what to expect to see, and nothing about VGG19 or dogs; run the cells for that.*

# %%
import support

import lrp

# %% tags=["parameters"]
MODEL = "vgg19"  # downloaded once: 548 MB
DATA = "imagewoof"
SIZE = "320px"  # 329 MB to download; "160px" is 93 MB, "full" 1.3 GB

# %%
model = support.model(MODEL)
data = lrp.DataSet.open(support.photos(DATA, SIZE))
print(f"{data.split}/: {sum(1 for _ in data):,} photos of {len(data.categories)} classes")

# %%
measured = {}
for competing, words in (("model", "all its classes compete"), ("data", "only the data's classes compete")):
    folder, bar = f"accuracy/{DATA}_{competing}", support.progress(words)
    for one in lrp.accuracy(
        data, model, folder, classes=competing, advance=lambda model, done, total, bar=bar: bar(done, total)
    ):
        if one.error:
            print(f"{one.model}: {one.error}")
        if one.accuracy:
            measured[f"{model}, {words}"] = one.accuracy
support.table(
    "Accuracy",
    ("", ">photos", ">top-1 (95 % interval)", ">top-5 (95 % interval)"),
    [[words, f"{a.counted:,}", str(a.top1 or ""), str(a.top5 or "")] for words, a in measured.items()],
)

# %%
support.show(lrp.plot_accuracy(measured))

# %% [markdown]
# Which classes gain by it:

# %%
support.show(lrp.plot_class_accuracy(measured))
