"""Which candidates are tried: of a component, of its precisions layer by layer, of whole pipelines."""
