"""What a verdict looks like."""
