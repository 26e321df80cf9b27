"""FLUX.2 inference over diffusers: knows nothing of HTTP, SQL or fal."""
