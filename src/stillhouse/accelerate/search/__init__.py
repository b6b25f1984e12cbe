"""Search spaces: candidates for each network, mixed precision, and sampling options of the whole pipeline."""
