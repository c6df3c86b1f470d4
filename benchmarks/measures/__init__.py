"""What can be measured: one subcommand a file, with its plan and what its workers run."""
