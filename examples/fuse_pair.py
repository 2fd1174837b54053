"""Fuse a bracket with the Python API and write the result.

python examples/fuse_pair.py examples/coffee/near.jpg examples/coffee/far.jpg coffee-x2.tif
"""

from __future__ import annotations

import sys

import mffsr

if __name__ == "__main__":
    *photos, output = sys.argv[1:]
    fused = mffsr.fuse(photos, scale=2)
    mffsr.write_photo(
        fused, output
    )  # refuses to replace a file, such as a photo where the output was forgotten
    width, height = fused.size
    print(f"{output}: {width}×{height}, {fused.bit_depth} bits a channel")
