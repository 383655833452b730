"""What a person launches: one small module per job, `python -m jobs.<name> --config F [key=value …]`."""
