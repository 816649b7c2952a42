"""The programs: one file for each subcommand, imported when it is asked for."""
