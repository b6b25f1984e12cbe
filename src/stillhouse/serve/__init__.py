"""The server: admits requests, batches them at every step, and answers them."""
