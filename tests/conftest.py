"""What every test shares."""

import os

from hypothesis import settings

# No time limit an example: CI has two busy cores. There the examples are the same in every run,
# so that a red run stays red; elsewhere each run tries new ones.
settings.register_profile("rigsize", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("rigsize")
