"""The choice among measured candidates, and its application to the manifest."""
