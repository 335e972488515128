"""Where runs are kept: a folder here or a bucket of objects, named by a path or a URI."""
