"""Images: files, metadata, the VAE, previews."""
