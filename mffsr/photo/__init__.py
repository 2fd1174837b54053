"""Files ↔ pixels: nothing of torch."""

from ._alpha import fill_from_nearest, fill_transparent
from ._atomic import atomic_output, resolve_target
from ._colour import same_profile
from ._decoded import Header, Pixels
from .images import (
    Photo,
    check_pixels,
    check_planes,
    check_registrable,
    planes_of,
    read_header,
    read_photo,
    with_depth,
)
from .metadata import XMP_NAMESPACE, OutputMetadata, is_result, output_metadata
from .write import OUTPUT_EXTENSIONS, check_target, supported_depth, write_photo

__all__ = [
    "OUTPUT_EXTENSIONS",
    "XMP_NAMESPACE",
    "Header",
    "OutputMetadata",
    "Photo",
    "Pixels",
    "atomic_output",
    "check_pixels",
    "check_planes",
    "check_registrable",
    "check_target",
    "fill_from_nearest",
    "fill_transparent",
    "is_result",
    "output_metadata",
    "planes_of",
    "read_header",
    "read_photo",
    "resolve_target",
    "same_profile",
    "supported_depth",
    "with_depth",
    "write_photo",
]
