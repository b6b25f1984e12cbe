"""Views of a report of `stillhouse accelerate`: text for a terminal, spreadsheet and HTML page."""
