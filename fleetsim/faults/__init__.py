"""What breaks, and when it is mended: one file a model."""
