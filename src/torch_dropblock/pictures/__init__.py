"""Pictures of DropBlock. Imports `layer` and what it stands on, and the extra `cli`."""
