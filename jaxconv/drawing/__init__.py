"""What pictures and pages are drawn with: the sheet, an example on it, the parts of a page."""
