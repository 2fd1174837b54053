"""The report of a fused bracket: one HTML page that needs nothing else, and an index page for a batch."""

from mffsr.report.card import is_ours, read_card
from mffsr.report.index import Entry, index_page
from mffsr.report.page import Making, bracket_page
from mffsr.report.pictures import Pictures, take_pictures

__all__ = [
    "Entry",
    "Making",
    "Pictures",
    "bracket_page",
    "index_page",
    "is_ours",
    "read_card",
    "take_pictures",
]
