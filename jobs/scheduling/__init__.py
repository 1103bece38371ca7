"""`rondo schedule`: the command, and the cron expressions that it reads."""
