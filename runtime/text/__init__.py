"""From prompts to token ids and embeddings: tokenizer, prompt weights, token embeddings."""
