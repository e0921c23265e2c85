"""What every test stands on: one thread, no network, and the two ways to draw examples.

`archer` must not be imported here: pytest first puts the checks of shapes and types under it.
"""

import os

# One thread a process, set before torch is first imported and inherited by every child process:
# sums then come out the same on any machine, and two test workers do not fight over the cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Tests make their models on the spot. A name that is not a folder fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

from hypothesis import settings

# `make test` draws the same few examples every time; `make test-full` draws new ones.
settings.register_profile("seeded", derandomize=True, max_examples=25, deadline=None)
settings.register_profile("full", max_examples=300, deadline=None, print_blob=True)
settings.load_profile("seeded")
