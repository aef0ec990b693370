"""From a chosen plan to the files that launch it."""

from rigsize.emit.files import Emission, emit
from rigsize.emit.launch import Launch
from rigsize.emit.spec_file import spec_flags, spec_toml

__all__ = ["Emission", "Launch", "emit", "spec_flags", "spec_toml"]
