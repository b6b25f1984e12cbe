"""Pictures as files: PNG with its request, JPEG and WebP, contact sheets."""
