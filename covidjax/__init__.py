"""Transfer learning on medical images with JAX: frozen means free. Research use only."""
