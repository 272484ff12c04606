"""From records to batches: tokenizer, chat rendering with its loss mask, packing into rows, `batch(step)`."""
