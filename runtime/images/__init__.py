"""Images: loading, pixels, metadata, the VAE, previews."""
