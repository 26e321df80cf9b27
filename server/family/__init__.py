"""fal's FLUX.2 endpoints as data: what they take, what they answer, and what serves them."""
