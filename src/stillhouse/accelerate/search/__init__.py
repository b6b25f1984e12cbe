"""Search spaces: candidates of a component, mixed precision, and variants of whole pipelines."""
