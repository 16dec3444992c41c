"""What can be read out of activations."""
