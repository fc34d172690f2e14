"""How many processes there are: connect, submit, shapes, and the Ray side of World. No mlflow."""
