"""Predictions -> one HTML file to look through, and to mail: what is right and wrong, and which pixels decided."""

from lrp.report.write import Report as Report
from lrp.report.write import report as report
