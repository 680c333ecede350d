"""The patch index: patches of real pictures to look up while drawing, and its file."""

from .calibration import EVIDENCE, Calibration, evidence
from .check import Finding, check_index
from .edit import Patches, SearchChoice, add_patches, merge_indexes, remove_pictures
from .file import is_index, load_index, read_header, save_index
from .hits import Hits
from .keys import KEY_SPACES, KeySpec
from .patch_index import PatchIndex, create_index
from .search import EXACT, STRUCTURES
from .sources import Source, SourceTable
from .thumbnails import contact_sheet

__all__ = [
    "EVIDENCE",
    "EXACT",
    "KEY_SPACES",
    "STRUCTURES",
    "Calibration",
    "Finding",
    "Hits",
    "KeySpec",
    "PatchIndex",
    "Patches",
    "SearchChoice",
    "Source",
    "SourceTable",
    "add_patches",
    "check_index",
    "contact_sheet",
    "create_index",
    "evidence",
    "is_index",
    "load_index",
    "merge_indexes",
    "read_header",
    "remove_pictures",
    "save_index",
]
