"""What a label is."""

from covidjax.tasks.base import epoch_targets, loss_function, plain_loss, targets

__all__ = ["epoch_targets", "loss_function", "plain_loss", "targets"]
