"""Training patches and whole volumes from shards."""

import os

# DALI asks the system for every large buffer anew and hands it back after use; each time the pages are mapped and
# cleared again, half of the CPU time of a 4x128x128x128 patch. It keeps buffers from this size on. Read when DALI
# first allocates, so it is set before any import of it.
os.environ.setdefault("DALI_MALLOC_POOL_THRESHOLD", "64k")
