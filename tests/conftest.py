"""Hypothesis profiles; tests run as if from a fresh machine."""

import os
import signal

import hypothesis

# pytest-xdist runs a process per core, so further BLAS threads would compete for these cores.
# OpenBLAS reads the variable when NumPy is first imported, which is later.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

hypothesis.settings.register_profile(
    "ci", derandomize=True, max_examples=50, deadline=None, print_blob=True
)
hypothesis.settings.register_profile("nightly", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# A shell starts what it runs in the background with SIGINT ignored, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
