"""Views of a report: terminal, spreadsheet and HTML page. None of them measures anything."""
