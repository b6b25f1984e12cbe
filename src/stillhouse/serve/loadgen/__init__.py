"""Load: requests sent to a server whether or not it answers, and what became of them."""
