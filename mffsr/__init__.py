"""mffsr: fuse a focus bracket into one sharp photograph and super-resolve it, in one network.

    import mffsr
    photo = mffsr.fuse(["a.jpg", "b.jpg"], scale=3)
    mffsr.write_photo(photo, "fused.tif")

Everything is imported at its first use: importing mffsr itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mffsr.checkpoint import load_model
    from mffsr.engine import fuse
    from mffsr.metrics import fusion_metrics
    from mffsr.photo import Photo, read_photo, write_photo

__version__ = "0.1.0"
__all__ = ["Photo", "__version__", "fuse", "fusion_metrics", "load_model", "read_photo", "write_photo"]

_HOME = {
    "Photo": "mffsr.photo",
    "read_photo": "mffsr.photo",
    "write_photo": "mffsr.photo",
    "fuse": "mffsr.engine",
    "load_model": "mffsr.checkpoint",
    "fusion_metrics": "mffsr.metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mffsr' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
