"""Where runs are stored: a local folder or a bucket of objects, named by a path or a URI."""
