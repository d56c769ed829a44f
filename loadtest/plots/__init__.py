"""Pictures of runs: PNG files, and one HTML page that carries them.

Owns how a run looks. Figures of merit come from `loadtest.results`; nothing is measured here.
"""

from loadtest.plots.curves import goodput, latency_cdf, prediction_errors
from loadtest.plots.lanes import lanes
from loadtest.plots.over_time import busy, pages, schedule_ahead
from loadtest.plots.page import Picture, html_page
from loadtest.plots.runs import DrawnRun, write_page
from loadtest.plots.style import MissingLibrary, png_of

__all__ = [
    "DrawnRun",
    "MissingLibrary",
    "Picture",
    "busy",
    "goodput",
    "html_page",
    "lanes",
    "latency_cdf",
    "pages",
    "png_of",
    "prediction_errors",
    "schedule_ahead",
    "write_page",
]
