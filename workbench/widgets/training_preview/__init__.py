"""What will be trained on, token by token, before it is."""
