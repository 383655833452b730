"""What a run needs and takes, told before it is started: shapes of its models, memory, work, and whether its data are to be had."""
