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
# # A tour in 15 minutes
#
# What layer-wise relevance propagation (LRP) answers, and how far it can be trusted: an explanation, its rules, the presets side by
# side, a contrast of two classes, the ledger of where the relevance went, and a rule of your own.
#
# *The outputs kept in this file are of an offline run (`LRP_OFFLINE=1`): the model that comes in a package, on photos made of
# a few free ones that come in packages. They show what to expect to see, and nothing about VGG19; run the cells for that.*
#
# Photo: Rachel Michetti, CC0, from scikit-image.

# %%
from dataclasses import dataclass

import numpy as np
import support

import lrp

# %% tags=["parameters"]
MODEL = "vgg19"  # downloaded once: 548 MB
DATA = None  # a photo of yours; None: a cup of espresso, from scikit-image
SIZE = None  # side of the model's input in pixels; None: what it was trained with
PRESETS = ["epsilon", "epsilon_plus_flat", "epsilon_gamma_box"]

# %% [markdown]
# ## 1. An explanation
#
# A model, its preprocessing, its class names; a photo; an explainer. The explanation shows itself: what the model saw, the relevance
# of each pixel for the class that it predicts, and whether all that is computed correctly.

# %%
model, preprocessing, class_names = lrp.load_model(support.model(MODEL))
preprocessing = preprocessing.with_size(SIZE) if SIZE else preprocessing
photo = lrp.open_photo(DATA or support.source("coffee.png"))
x = preprocessing(photo.pixels)[None]

explainer = lrp.Explainer(model, class_names=class_names, preprocessing=preprocessing)
e = explainer(x)
e

# %% [markdown]
# `e.save("espresso.png", photo)` writes the picture that `lrp explain` makes, on the whole photo. Relevance is counted in logits, and its sum over the pixels is what reached them:

# %%
print(f"shape {list(e.relevance.shape)}, sum {float(e.relevance.sum()):.4f}")
print(e.health)

# %% [markdown]
# ## 2. The rules
#
# The model was captured as a graph of operations, and each has a rule that hands relevance from its output to its inputs. Which rule,
# the preset says; without a name it is the one that fits the architecture.

# %%
explainer.rules()

# %% [markdown]
# ## 3. Presets side by side
#
# The same photo and class, explained by other rules. Each panel has its own scale.


# %%
def panel(explanation, title):
    """The relevance of each pixel, with how much of the start reached them."""
    values = explanation.relevance[0].sum(0).numpy()
    account = f"{values.sum():.3g} of {float(explanation.start[0].sum()):.3g} logits reached the pixels"
    return lrp.Panel(values, title, account, limit=float(np.percentile(abs(values), 99.5)))


seen = preprocessing.geometry.apply(photo.pixels)
panels = []
for name in PRESETS:
    preset = lrp.preset(name, low=preprocessing.low, high=preprocessing.high)
    panels.append(panel(lrp.explain(model, x, composite=preset), name))
predicted = class_names[int(e.target[0])]
support.show(lrp.draw(seen, panels, title=predicted, subtitle="predicted; the photo as the model saw it"))

# %% [markdown]
# ## 4. Why this and not that
#
# What speaks for the second likeliest class often speaks for the likeliest, too. A contrast starts with the logit of the one and,
# negative, that of the other: the map sums to the part of their difference that reached the pixels. Several targets take one forward
# pass.

# %%
second = class_names[int(e.logits[0].topk(2).indices[1])]
several = explainer.many(x, targets=[second, lrp.Contrast(predicted, second)])
several

# %% [markdown]
# ## 5. The ledger
#
# Every operation keeps an account: relevance in = out + what the bias took + what ε took + what was dropped. That it closes is what
# `health` checks. These operations gave most to their biases:

# %%
rows = sorted(e.ledger, key=lambda row: -abs(float(row.bias[0])))[:8]
support.table(
    "Accounts, in logits",
    ("module", "operation", "rule", ">in", ">out", ">bias", ">unexplained"),
    [
        [
            row.path, row.op, row.rule, f"{float(row.relevance_in[0]):.3f}", f"{float(row.relevance_out[0]):.3f}",
            f"{float(row.bias[0]):.3f}", f"{abs(float(row.unexplained[0])):.5f}",
        ]
        for row in rows
    ],
)  # fmt: skip
totals = {name: float(values[0]) for name, values in e.ledger.totals.items()}
print(f"start {totals['start']:.3f} = pixels {totals['input']:.3f} + biases {totals['bias']:.3f} "
      f"+ ε {totals['epsilon']:.3f} + dropped {totals['dropped']:.3f}")  # fmt: skip

# %% [markdown]
# Biases that take nothing leave more for the pixels; where it comes to lie then is another question:

# %%
ignoring = lrp.explain(model, x, composite=lrp.preset("epsilon_gamma_wsquare", bias="ignore"))
panels = [panel(e, "the default: biases keep their share"), panel(ignoring, "biases ignored")]
support.show(lrp.draw(seen, panels, title=predicted, subtitle="predicted"))

# %% [markdown]
# ## 6. A rule of your own
#
# A rule is a small frozen class with an equation: which parts of the input a meet which version of the weights w. In this one the size of
# a contribution counts and not its sign, R_j = Σ_k |a_j w_jk| / (Σ_i |a_i w_ik| + |b_k|) R_k. A composite says which operation gets which
# rule; the last pair that matches wins.


# %%
@dataclass(frozen=True)
class BySize(lrp.AffineRule):
    """In proportion to the size of the contributions."""

    def branches(self):
        size, negative_size = (lambda w: w.abs()), (lambda w: -w.abs())
        return (lrp.Branch((("a+", size), ("a-", negative_size)), bias=size, sign=1),)


composite = lrp.Composite([(lrp.family("conv"), BySize()), (lrp.first, lrp.WSquare())], name="by_size")
own = lrp.explain(model, x, composite=composite)
print(own.health)
support.show(lrp.draw(seen, [panel(own, "by_size")], title=predicted, subtitle="predicted"), width=560)
