"""Pictures, captions and batches."""
