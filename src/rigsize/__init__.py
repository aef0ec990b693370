"""rigsize: the true GPU memory of a language-model run, traced from the real model."""

__version__ = "0.1.0"
