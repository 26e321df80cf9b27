"""Trains the demonstration checkpoint: a small FLUX.2 that draws coloured shapes as it is told."""

from pipelines.compat import declare_torchvision_operators

declare_torchvision_operators()  # before any module here imports diffusers
