"""The HTTP surface, one noun a file."""
