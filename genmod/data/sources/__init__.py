"""Sources of raw data: folders, arrays, tables, tars."""
