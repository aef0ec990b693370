"""Registers the fake accelerator while tests are collected, before any of them runs autograd."""

import torch

from rigsize.trace import fake_accelerator

fake_accelerator.register()
# Tiny models gain nothing from threads, and on a busy machine threads wait for each other.
torch.set_num_threads(1)
