"""A directory whose files are the objects of a bucket."""
