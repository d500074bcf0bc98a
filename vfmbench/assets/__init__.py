"""Small trained weights of the embedded suites, a folder each, with a manifest."""
