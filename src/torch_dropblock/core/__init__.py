"""The definition of DropBlock: checks, geometry and γ, keys, blocks, seeds, the oracle. Imports only torch."""
