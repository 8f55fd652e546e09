"""Pipeline of threads: mailboxes, runner, stages, frame accounts and metrics."""
