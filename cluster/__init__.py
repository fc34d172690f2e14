"""Ray: connect, submit jobs, run tasks, actors and groups of workers. No mlflow, no recipes."""
