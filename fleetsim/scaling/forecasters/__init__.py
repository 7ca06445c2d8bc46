"""What demand is expected to be: one file a forecaster."""
