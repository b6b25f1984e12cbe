"""The choice among measured candidates, and its way into the manifest."""
