"""Networks in inference: logits, figures, tiles, volumes."""
