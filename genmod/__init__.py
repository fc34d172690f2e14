"""What one process can do: bytes -> batch -> loss -> images -> nats -> decision.

Nothing in here imports ray or mlflow, and importing it touches nothing outside the process.
"""
