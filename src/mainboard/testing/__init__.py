"""Case objects that tests, benchmarks and support matrices share."""
