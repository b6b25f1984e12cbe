"""The choice among measured candidates (configurations of networks), and its application to the pipeline's manifest."""
