"""One module for each command of the command line; its `main(options)` returns the exit code."""
