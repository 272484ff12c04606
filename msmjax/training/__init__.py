"""Loss, step, sharding, checkpoint and the one loop that pretrains, midtrains and fine-tunes."""
