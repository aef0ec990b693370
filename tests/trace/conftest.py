"""Registers the fake accelerator while tests are collected, before any of them runs autograd."""

from rigsize.trace import fake_accelerator

fake_accelerator.register()
