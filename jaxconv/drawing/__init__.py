"""Drawing primitives for figures and pages: the sheet, examples, and the parts of a page."""
