"""Jobs: one file per kind of work on Ray. A job knows no recipe."""
