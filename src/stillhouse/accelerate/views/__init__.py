"""Views of a report: the same facts for a terminal, for a spreadsheet, and for a browser. None of them measures."""
