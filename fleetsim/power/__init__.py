"""Who sets clocks, caps, batch sizes and sleep states."""
