"""LoRA at run time."""
