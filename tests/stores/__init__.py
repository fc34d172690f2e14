"""A real S3 store for the tests, and a proxy that makes its requests fail."""
