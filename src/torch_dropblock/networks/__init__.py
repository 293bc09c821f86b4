"""Layers in whole networks: inserted, found, scheduled, summarised, removed. Imports `layer` and what it stands on."""
