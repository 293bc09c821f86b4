"""DropBlock in the trainers of other libraries, one file each. Imports `networks`, `layer` and `core`."""
