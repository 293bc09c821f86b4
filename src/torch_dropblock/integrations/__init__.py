"""DropBlock in other libraries' trainers, one file for each. Imports `networks` and what it stands on."""
