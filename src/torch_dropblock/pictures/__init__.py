"""Images in, pictures of DropBlock out. Imports `layer` and what it stands on, and the extra `cli`."""
