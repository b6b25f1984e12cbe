"""Learning in torch: one loop for whatever learns, resumable to the bit. It knows no pictures."""
