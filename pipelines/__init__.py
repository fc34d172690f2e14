"""The order of stages and their side effects: one file per stage, the CLI, recipes, tracking."""
