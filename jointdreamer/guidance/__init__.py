"""Text-to-image priors: images to latents and back, and the noise they predict."""
