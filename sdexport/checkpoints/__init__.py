"""Reading checkpoints: diffusers folders, single files, LoRA and embedding files."""
