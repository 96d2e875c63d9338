"""The graphs of a training step: selection, loss, gradients, optimizer; pure."""
