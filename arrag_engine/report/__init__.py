"""What a picture took from the indexes, for people: table, over-copying score, pictures, view."""

from .pictures import heat_map, influence, source_sheet
from .sources import Report, SourceRow, make_report
from .view import View, make_view

__all__ = [
    "Report",
    "SourceRow",
    "View",
    "heat_map",
    "influence",
    "make_report",
    "make_view",
    "source_sheet",
]
