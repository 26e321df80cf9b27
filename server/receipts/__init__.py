"""Signed receipts of how images were made, and making the images again from one."""
