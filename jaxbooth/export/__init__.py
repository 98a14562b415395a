"""Files that other programs load: LoRA in the layouts of diffusers and of kohya, embeddings, model cards."""
