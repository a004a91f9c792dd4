"""Photos in, pictures out: explains the files of a folder, one result for every file."""
