"""Imports what every training imports lazily, once, in the process that is forked; without autograd, which forbids
forks."""

import lightning_fabric  # noqa: F401
import torch

from helpers.training import TINY
from lrp.train import curves
from lrp.train.heads import model_with_new_head, split_head

torch.set_num_threads(1)
split_head(model_with_new_head(TINY, 2, pretrained=False).model, torch.zeros(2, 3, 32, 32))
curves.plot_training([{"epoch": 0, "val_loss": 1.0, "val_accuracy": 0.5}], 0)
