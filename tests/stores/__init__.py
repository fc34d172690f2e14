"""A real S3 store for the tests, and a proxy before it that makes it fail."""
