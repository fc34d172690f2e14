"""Whether a cluster can run a recipe: facts of each node, compared with what the recipe needs."""
