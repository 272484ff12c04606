"""From checkpoints to results: forced choice, bits per byte, statistics."""
