"""The shell side of every command: arguments in, one run folder out, and errors that a person can act on."""
