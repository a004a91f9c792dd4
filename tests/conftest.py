"""One thread: the tests are many and small, and threads would wait for each other more than they compute."""

import torch

torch.set_num_threads(1)
