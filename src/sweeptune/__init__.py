"""sweeptune: full fine-tuning, LoRA or QLoRA, measured on your model, your data and your GPU."""
