"""What runs a pipeline for the gateway: a child process on this box."""
