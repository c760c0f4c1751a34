"""What the tools share: arguments, the dry run, many runs, tables and plots."""
