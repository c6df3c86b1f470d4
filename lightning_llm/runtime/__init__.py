"""What module, callbacks, strategies and plugins need to know of a running Trainer."""
