"""The gateway: fal-compatible routes, the durable queue, and the runners it supervises."""
