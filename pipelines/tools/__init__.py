"""What the command line runs as `python -m pipelines.tools.X`, because it needs torch."""
