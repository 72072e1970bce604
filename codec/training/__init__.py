"""Training: data, losses, discriminators and the loop; stands on `codec.model`, which does not know it."""
