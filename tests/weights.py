"""A mark for tests that run the embedded model; it has an effect only where its weights were never made."""

from pathlib import Path

import pytest

import stillhouse

WEIGHTS = Path(stillhouse.__file__).parent / "models" / "shapes" / "weights"

needs_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the embedded model is not trained; see make train")
