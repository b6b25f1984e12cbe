"""The image server: accepts requests, batches their denoising steps, and sends the images back."""
