"""Pictures as arrays and as files: pixel values, PNG with its request, JPEG and WebP, contact sheets."""
